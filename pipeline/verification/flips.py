"""Whether an engine gives images other classes than float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.contract import Array, Outputs, Session
from pipeline.golden.file import Reference
from pipeline.verification import accuracy, limits, noise_floor
from pipeline.verification.batches import run_padded


@dataclass(frozen=True)
class Flips:
    """Test images to which float64 and the engine give different classes.

    Attributes:
        images: How many were classified.
        explained: Flips where float64's own top two logits are closer than the allowed error.
        unexplained: The others; one of them is a mismatch.
        correct: How many the engine classified right; None if the classes are not known.
        reference_correct: How many float64 classified right.
        lost: How many float64 alone classified right.
    """

    images: int
    explained: int
    unexplained: int
    correct: int | None
    reference_correct: int | None
    lost: int | None = None

    @property
    def top1(self) -> float | None:
        """The part of the images that the engine classifies right; None if it is not known."""
        return None if self.correct is None else self.correct / self.images

    @property
    def drop(self) -> accuracy.Drop | None:
        """The accuracy lost against float64; None if the classes are not known."""
        if self.correct is None or self.reference_correct is None or self.lost is None:
            return None
        gained = self.correct - (self.reference_correct - self.lost)
        return accuracy.drop(self.images, self.lost, gained)


def count_flips(
    session: Session,
    golden: Reference,
    size: int,
    test: dict[str, Array] | None,
    run: tuple[Array, Outputs],
) -> Flips:
    """Compares the session's classes with those of float64.

    Args:
        run: Golden rows that were run at `size`, and their outputs.
    """
    labels: Array | None
    output = golden.logits
    if test is not None:
        inputs, reference, labels = test, golden.test_reference, golden.test_labels
    elif len(golden.labels):
        inputs = {key: array[: len(golden.labels)] for key, array in golden.inputs.items()}
        reference, labels = golden.reference[output][: len(golden.labels)], golden.labels
    else:
        inputs, reference, labels = golden.inputs, golden.reference[output], None
    images = len(reference)
    rows, outputs = run
    if test is None and len(rows) == len(golden.cases):
        logits = outputs[output][:images]
    else:
        parts = []
        for start in range(0, images, size):
            feeds = {key: array[start : start + size] for key, array in inputs.items()}
            parts.append(run_padded(session, feeds, min(size, images - start))[output])
        logits = np.concatenate(parts)
    chosen = logits.argmax(axis=1)
    ranked = np.sort(reference, axis=1)
    margin = ranked[:, -1] - ranked[:, -2]
    best = reference.argmax(axis=1)
    flipped = chosen != best
    # Each of the two logits may be off by the allowed error.
    close = margin < 2 * limits.MAX_ERROR_IN_FLOORS * _allowed(
        golden, images, tested=test is not None
    )
    return Flips(
        images=images,
        explained=int((flipped & close).sum()),
        unexplained=int((flipped & ~close).sum()),
        correct=None if labels is None else int((chosen == labels).sum()),
        reference_correct=None if labels is None else int((best == labels).sum()),
        lost=None if labels is None else int(((best == labels) & (chosen != labels)).sum()),
    )


def _allowed(golden: Reference, images: int, *, tested: bool) -> Array:
    """Returns the noise floor of each image's logits, `[images]`.

    Images outside the golden set get the largest floor of the ordinary golden images.
    """
    floor = noise_floor.floor(
        golden.reference[golden.logits], golden.noise[golden.logits], golden.precision
    )
    largest = np.where(floor.comparable, floor.max, np.inf)
    if not tested:
        return largest[:images]
    judged = largest[golden.common & floor.comparable]
    return np.full(images, judged.max(initial=0.0))


def flip_faults(flips: Flips) -> list[str]:
    """Returns what is wrong with the classes, in words."""
    if not flips.unexplained:
        return []
    return [
        f"{flips.unexplained} of {flips.images} test images change class where float64's margin"
        " is wider than rounding can explain"
    ]

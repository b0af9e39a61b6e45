"""Chooses the batch sizes to judge an engine at, and runs golden rows in such batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.contract import Array, Feeds, Outputs, Session
from pipeline.golden.file import Reference
from pipeline.verification import limits


def batch_sizes(rows: int, accepted: tuple[int, int] | None) -> tuple[int, ...]:
    """Returns the batch sizes to judge at: `limits.BATCH_SIZES` and the largest possible.

    Args:
        rows: How many golden rows there are.
        accepted: The least and the largest batch of the session; None if it takes any.
    """
    low, high = accepted or (1, rows)
    largest = max(low, min(high, rows))
    return tuple(size for size in sorted({*limits.BATCH_SIZES, largest}) if low <= size <= largest)


def rows_to_run(golden: Reference, accepted: tuple[int, int] | None, tested: int) -> int:
    """Returns how many rows a verdict runs, without those that pad a batch.

    Args:
        tested: Images of the test set; 0 means that golden rows are classified instead.
    """
    rows = len(golden.cases)
    others = sum(rows_to_run(other, accepted, 0) for other in golden.others)
    if not golden.batched:
        return rows + others
    at_sizes = [min(rows, limits.BATCHES_OF_A_SIZE * size) for size in batch_sizes(rows, accepted)]
    classified = tested
    if not tested and at_sizes[-1] < rows:  # otherwise all rows run at the largest size
        classified = len(golden.labels) or rows
    return sum(at_sizes) + (classified if golden.logits else 0) + others


def run_rows(session: Session, golden: Reference, size: int) -> tuple[Array, Outputs]:
    """Runs golden rows through a session in batches of `size`.

    All rows run at large batch sizes. At small ones only enough rows to fill several batches run,
    edge cases included: they only have to show whether the batch size matters.

    Returns:
        The indices of the rows that ran, `[rows run]`, and the outputs for them.
    """
    rows = len(golden.cases)
    wanted = np.arange(rows)
    most = limits.BATCHES_OF_A_SIZE * size
    if golden.batched and rows > most:
        first = most // 2
        wanted = np.concatenate([np.arange(first), np.arange(rows - (most - first), rows)])
    parts: dict[str, list[Array]] = {}
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        feeds = {name: np.ascontiguousarray(a[chunk]) for name, a in golden.inputs.items()}
        for name, array in run_padded(session, feeds, len(chunk)).items():
            parts.setdefault(name, []).append(array)
    return wanted, {name: _join(arrays) for name, arrays in parts.items()}


class Wrapped:
    """A session in place of another one, that runs it; see `engines.contract.Session`."""

    def __init__(self, session: Session) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.device, self.batch, self.stream = session.device, session.batch, session.stream
        self.bind, self.launch = session.bind, session.launch
        self.synchronize, self.close = session.synchronize, session.close
        self.session = session

    def run(self, feeds: Feeds) -> Outputs:
        """Takes and returns host arrays."""
        return self.session.run(feeds)


class Calls(Wrapped):
    """A session of a graph without a batch axis, run as if it took batches of one row."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.batch = (1, 1)

    def run(self, feeds: Feeds) -> Outputs:
        """Takes and returns arrays with a first axis of size 1 that the graph does not have."""
        outputs = super().run({n: np.array(a[0], order="C") for n, a in feeds.items()})
        return {name: array[np.newaxis] for name, array in outputs.items()}


def run_padded(session: Session, feeds: dict[str, Array], count: int) -> Outputs:
    """Runs a batch of `count` rows, padded with its last row to the session's least batch."""
    low = session.batch[0] if session.batch else 1
    if count >= low:
        return session.run(feeds)
    rows = np.minimum(np.arange(low), count - 1)
    outputs = session.run({name: np.ascontiguousarray(a[rows]) for name, a in feeds.items()})
    return {name: array[:count] for name, array in outputs.items()}


def _join(arrays: Sequence[Array]) -> Array:
    """Concatenates along the batch; returns an empty array if shapes differ, to fail the check."""
    try:
        return np.concatenate(arrays)
    except ValueError:
        return np.empty((0,), arrays[0].dtype)

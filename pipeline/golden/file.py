"""The golden file: inputs, and PyTorch's outputs for them in float64 and at the precision.

With it an engine can be verified on a machine that has neither PyTorch nor the data set.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np

from engines.contract import Array, TensorSpec
from engines.errors import DeployError
from exporters import PRECISIONS
from pipeline.golden import npz
from pipeline.workflow.digests import parse_json

SCHEMA = 6
# Images that no test set has. A quantized graph saturates on some of them, as it should.
IMAGE_EDGES = ("all 0", "all 255", "one pixel", "checkerboard", "ramp", "uniform noise")
# The same for inputs other than images: the first example at other magnitudes. Integers take their
# least and greatest values instead.
EXTREMES = ("nothing", "a thousandth", "a thousandfold")
EDGES = IMAGE_EDGES + EXTREMES
# How the names of generated rows begin, for inputs other than images.
MADE_ROW = "made row"
# The arrays of a reference, by input or output.
_PARTS = ("inputs", "reference", "native", "noise")
_T = TypeVar("_T")
# What the content of a file that is damaged or of another kind raises.
_CONTENT_ERRORS = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Weights:
    """The expected weights of a graph, as digests (`pipeline.verification.weight_audit.digest`).

    Attributes:
        carried: By the name of each parameter and buffer, the digest of the tensor that carries
            it in the graph (`exporters.weight_map`).
        uncarried: Parameters for which no such tensor was found at export, for example because
            the exporter computed something else from them.
        constants: Digests of the graph's other tensors.
    """

    carried: Mapping[str, str]
    uncarried: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reference:
    """What an engine has to reproduce.

    Attributes:
        inputs: By input name, `[rows, …]`: real ones first, then edge cases.
        reference: By output name, the float64 outputs, `[rows, …]`.
        native: By output name, PyTorch's outputs at the graph's precision, `[rows, …]`.
        noise: By output name, how far rounding moves each row, `[rows, 2]` (see `noise.measure`).
        cases: A name for each row.
        logits: The name of the output whose largest value is the class; "" for any other model.
        labels: The class of each real image, `[images]`; these are the first rows. Empty if
            the classes are not known.
        test_reference: The float64 logits of the test images, `[count, classes]`; empty
            without a test set.
        test_labels: The class of each test image, `[count]`.
        precision: The graph's precision, such as "fp32".
        max_drop: The accuracy that quantization may cost, as a fraction of the images.
        batched: The first axis of every input and output of the graph is the batch. Otherwise each
            row is one run of the graph, whose inputs and outputs have the axes of a row.
        others: What it has to reproduce at other sizes of its dynamic axes, with the same names and
            numbers of axes, and without classes or a test set.
    """

    inputs: dict[str, Array]
    reference: dict[str, Array]
    native: dict[str, Array]
    noise: dict[str, Array]
    cases: tuple[str, ...]
    logits: str
    labels: Array
    test_reference: Array
    test_labels: Array
    precision: str
    max_drop: float
    batched: bool = True
    others: tuple[Reference, ...] = ()

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs. An axis is dynamic if it is the batch, or has several sizes here."""
        return self._specs([other.inputs for other in (self, *self.others)])

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs, as `input_specs`."""
        return self._specs([other.native for other in (self, *self.others)])

    @property
    def size(self) -> str:
        """The sizes of a row's inputs, such as "3x320x320"."""
        shapes = ("x".join(map(str, array.shape[1:])) for array in self.inputs.values())
        return ", ".join(shape or "1" for shape in shapes)

    def feeds(self, batch: int) -> dict[str, Array]:
        """Returns inputs for the graph: a batch of rows, repeated where there are fewer.

        A graph without a batch axis gets the first row.
        """
        if not self.batched:
            return {name: np.array(array[0], order="C") for name, array in self.inputs.items()}
        return {
            name: np.ascontiguousarray(np.resize(array, (batch, *array.shape[1:])))
            for name, array in self.inputs.items()
        }

    def sizes(self, inputs: Sequence[TensorSpec]) -> dict[str, list[list[int] | None]]:
        """Returns the least, the usual and the largest size of the axes of a graph's inputs.

        Args:
            inputs: The graph's inputs. Those with another dynamic axis than the batch are returned.

        Returns:
            By input, an entry for each axis; None for the batch.
        """
        batch: list[list[int] | None] = [None] if self.batched else []
        known = {}
        for spec in inputs:
            if None in spec.shape[len(batch) :]:
                rows = [other.inputs[spec.name].shape[1:] for other in (self, *self.others)]
                axes = [[min(sizes), sizes[0], max(sizes)] for sizes in zip(*rows, strict=True)]
                known[spec.name] = [*batch, *axes]
        return known

    def _specs(self, parts: Sequence[dict[str, Array]]) -> tuple[TensorSpec, ...]:
        batch = (None,) if self.batched else ()
        return tuple(
            TensorSpec(
                name,
                array.dtype.name,
                (
                    *batch,
                    *(
                        size if all(other == size for other in sizes) else None
                        for size, *sizes in zip(
                            *(part[name].shape[1:] for part in parts), strict=True
                        )
                    ),
                ),
            )
            for name, array in parts[0].items()
        )

    @property
    def common(self) -> Array:
        """Mask of the ordinary rows, `[rows]`; False for edge cases."""
        return ~np.isin(self.cases, EDGES)

    def check(self) -> None:
        """Raises ValueError unless the parts fit together and every output is finite.

        NaN or Inf in PyTorch's own outputs would make the noise floor meaningless, and with it
        every verdict.
        """
        rows = len(self.cases)
        if not rows or self.precision not in PRECISIONS:
            raise ValueError(f"it has {rows} rows at precision {self.precision!r}")
        keys = self.reference.keys()
        if not keys == self.native.keys() == self.noise.keys() or not keys or not self.inputs:
            raise ValueError("inputs or outputs are missing")
        for part in (self.inputs, self.reference, self.native):
            for name, array in part.items():
                if array.ndim < 1 or len(array) != rows or array.dtype.kind not in "biuf":
                    raise ValueError(f"{name} is {array.dtype}{list(array.shape)}, not {rows} rows")
        for name, array in self.reference.items():
            if array.shape != self.native[name].shape:
                raise ValueError(f"{name} has another shape in float64 than at the precision")
            if not (np.isfinite(array).all() and np.isfinite(self.native[name]).all()):
                raise ValueError(f"PyTorch's own output {name!r} has NaN or Inf")
            noise = self.noise[name]
            if (
                noise.dtype.kind != "f"
                or noise.shape != (rows, 2)
                or not (noise >= 0).all()
                or np.isinf(noise).any()
            ):
                raise ValueError(f"the noise of {name!r} is not two numbers for each row")
        counts = (self.labels.ndim, self.test_labels.ndim, self.test_reference.ndim)
        whole = {self.labels.dtype.kind, self.test_labels.dtype.kind} <= {"i", "u"}
        fits = counts == (1, 1, 2) and len(self.test_labels) == len(self.test_reference)
        if not whole or not fits:
            raise ValueError("the test set's labels and outputs do not fit together")
        if self.logits and (
            self.logits not in self.native or self.native[self.logits].ndim != 2  # noqa: PLR2004
        ):
            raise ValueError(f"{self.logits!r} is not an output of shape [rows, classes]")
        if not np.isfinite(self.test_reference).all() or len(self.labels) > rows:
            raise ValueError(
                "the test set's outputs have NaN or Inf, or there are more labels than rows"
            )
        self._check_others()

    def checked(self, what: str, hint: str) -> Self:
        """Returns the reference itself, if its parts fit together and every output is finite.

        Args:
            what: What cannot be judged otherwise, such as "model".

        Raises:
            DeployError: See `check`.
        """
        try:
            self.check()
        except ValueError as error:
            raise DeployError(f"the {what} cannot be judged: {error}", hint) from error
        return self

    def _check_others(self) -> None:
        for other in self.others:
            other.check()
            for part, known in ((other.inputs, self.inputs), (other.native, self.native)):
                kinds = {name: (array.dtype, array.ndim) for name, array in known.items()}
                if kinds != {name: (array.dtype, array.ndim) for name, array in part.items()}:
                    raise ValueError(f"it has other inputs or outputs at {other.size}")

    def at_size(
        self,
        cases: tuple[str, ...],
        inputs: dict[str, Array],
        reference: dict[str, Array],
        native: dict[str, Array],
        noise: dict[str, Array],
    ) -> Reference:
        """Returns what the same graph has to reproduce at another size of its inputs."""
        return Reference(
            inputs=inputs,
            reference=reference,
            native=native,
            noise=noise,
            cases=cases,
            logits="",
            labels=np.zeros(0, np.int64),
            test_reference=np.zeros((0, 0)),
            test_labels=np.zeros(0, np.int64),
            precision=self.precision,
            max_drop=self.max_drop,
            batched=self.batched,
        )

    def with_weights(self, weights: Weights) -> Golden:
        """Returns the golden file of a graph with these weights."""
        parts = {part.name: getattr(self, part.name) for part in dataclasses.fields(Reference)}
        return Golden(**parts, weights=weights)


@dataclass(frozen=True, kw_only=True)
class Golden(Reference):
    """A reference, and the weights of the graph exported with it: the golden file.

    Attributes:
        weights: The expected weights of the graph.
    """

    weights: Weights

    def save(self, path: Path) -> None:
        """Writes an .npz; equal contents give equal bytes.

        It is compressed, unless it would shrink so much that `npz.read` takes it for an attack.
        """
        meta = {
            "schema": SCHEMA,
            "cases": self.cases,
            "logits": self.logits,
            "precision": self.precision,
            "max_drop": self.max_drop,
            "batched": self.batched,
            "others": [other.cases for other in self.others],
            "weights": dataclasses.asdict(self.weights),
        }
        arrays = {
            "meta": np.frombuffer(json.dumps(meta, sort_keys=True).encode(), dtype=np.uint8),
            "labels": self.labels,
            "test_reference": self.test_reference,
            "test_labels": self.test_labels,
        }
        for prefix, reference in _prefixed([self, *self.others]):
            for part in _PARTS:
                arrays |= {
                    f"{prefix}{part}/{name}": array
                    for name, array in getattr(reference, part).items()
                }
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub is too narrow
        if not npz.compressible(path):
            with path.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Golden:
    """Reads a golden file.

    Raises:
        DeployError: The file is damaged, or has another schema.
    """
    try:
        arrays = npz.read(path)
        meta: dict[str, Any] = parse_json(arrays["meta"].tobytes())
        if meta["schema"] != SCHEMA:
            raise ValueError(f"schema {meta['schema']}, this version reads {SCHEMA}")
        if type(meta["batched"]) is not bool:
            raise ValueError(f"batched is {meta['batched']!r:.40}")
        inputs, reference, native, noise = _parts(arrays, "")
        golden = Golden(
            inputs=inputs,
            reference=reference,
            native=native,
            noise=noise,
            cases=tuple(meta["cases"]),
            logits=meta["logits"],
            labels=arrays["labels"],
            test_reference=arrays["test_reference"],
            test_labels=arrays["test_labels"],
            precision=meta["precision"],
            max_drop=_fraction(meta["max_drop"]),
            batched=meta["batched"],
            weights=_weights(meta["weights"]),
        )
        others = tuple(
            golden.at_size(tuple(cases), *_parts(arrays, prefix))
            for prefix, cases in _prefixed([(), *meta["others"]])[1:]
        )
        golden = dataclasses.replace(golden, others=others)
        golden.check()
    except _CONTENT_ERRORS as error:
        raise DeployError(
            f"{path} is not a golden file: {error}",
            "export the model again, or name another golden file",
        ) from error
    return golden


def _prefixed(of_sizes: Iterable[_T]) -> list[tuple[str, _T]]:
    """Returns what belongs to each size with the prefix of its names in the file."""
    return [(f"size {index}/" if index else "", part) for index, part in enumerate(of_sizes)]


def _fraction(value: Any) -> float:
    if type(value) is not float or not 0 <= value <= 1:
        raise ValueError(f"{value!r:.40} is not a fraction")
    return value


def _weights(meta: dict[str, Any]) -> Weights:
    named = {name: tuple(meta[name]) for name in ("uncarried", "constants")}
    return Weights(dict(meta["carried"]), **named)


def _parts(
    arrays: dict[str, Array], prefix: str
) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], dict[str, Array]]:
    inputs, reference, native, noise = (_part(arrays, f"{prefix}{part}") for part in _PARTS)
    return inputs, reference, native, noise


def _part(arrays: dict[str, Array], part: str) -> dict[str, Array]:
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }

"""Runs golden rows through a graph, and finds the values that its half types cannot hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto

from engines.contract import Array, Outputs
from engines.errors import DeployError
from exporters import typed_graph
from exporters.graph_run import GraphRun
from exporters.half_range import HEADROOM, LOST_BITS
from exporters.wide_run import round_to
from pipeline.golden.file import EXTREMES

# Numbers of the inputs that a graph is run on at a time.
_AT_ONCE = 1 << 20
# Operators that turn a small number into a large one, and the first input of which they do.
_INVERSES = {"Sqrt": 0, "Log": 0, "Reciprocal": 0, "Div": 1}


@dataclass(frozen=True)
class SizedRows:
    """Golden inputs of one size.

    Attributes:
        inputs: By name, `[rows, …]`.
        cases: A name for each row.
    """

    inputs: dict[str, Array]
    cases: tuple[str, ...]

    def take(self, numbers: Iterable[int]) -> SizedRows:
        """Returns the rows of some numbers."""
        chosen = [*numbers]
        return SizedRows(
            {name: array[chosen] for name, array in self.inputs.items()},
            tuple(self.cases[number] for number in chosen),
        )


def run_rows(run: GraphRun, rows: SizedRows, *, batched: bool) -> Outputs:
    """Returns the outputs for all rows, `[rows, …]` by name.

    Raises:
        DeployError: The graph does not run, or the shape of an output is another on another row.
    """
    count = len(rows.cases)
    numbers = sum(array[0].size for array in rows.inputs.values())
    step = max(2, _AT_ONCE // max(1, numbers)) if batched else 1
    parts: list[Outputs] = []
    for start in range(0, count, step):
        feeds = {
            name: array[start : start + step] if batched else array[start]
            for name, array in rows.inputs.items()
        }
        outputs = run(feeds)
        parts.append(outputs if batched else {n: array[np.newaxis] for n, array in outputs.items()})
    joined = {}
    for name in run.outputs:
        arrays = [part[name] for part in parts]
        if len({array.shape[1:] for array in arrays}) > 1:
            shapes = ", ".join(sorted({str([*array.shape[1:]]) for array in arrays}))
            raise DeployError(
                f"the shape of output {name} depends on the values of the inputs: {shapes}",
                "judge a graph whose outputs have fixed shapes, such as the one before its"
                " non-maximum suppression",
            )
        joined[name] = np.concatenate(arrays)
    return joined


def round_value(value: Array, kind: int) -> Array:
    """Rounds float32 numbers to the digits of a half type, whatever their exponents."""
    dtype = torch.bfloat16 if kind == TensorProto.BFLOAT16 else torch.float16
    return round_to(torch.from_numpy(np.array(value, order="C")), dtype).numpy()


def fitting(
    model: onnx.ModelProto, halves: Mapping[str, int], rows: SizedRows, *, batched: bool
) -> Array:
    """Returns a mask of the rows, `[rows]`: those extreme on purpose may leave a half type."""
    mask = np.ones(len(rows.cases), bool)
    inverted = _inverted(model)
    for index in np.flatnonzero(np.isin(rows.cases, EXTREMES)):
        largest: dict[str, float] = {}
        least = dict.fromkeys(inverted, np.inf)
        _watch(model, halves, rows.take([int(index)]), largest, least, batched=batched)
        mask[index] = all(
            size == 0 or _least(halves[name]) <= size <= float(_limits(halves[name]).max)
            for name, size in largest.items()
        ) and all(size >= _least(halves[name]) for name, size in least.items() if name in halves)
    return mask


def usual(rows: SizedRows) -> SizedRows:
    """Returns the rows that are not extreme on purpose."""
    return rows.take(np.flatnonzero(~np.isin(rows.cases, EXTREMES)))


def out_of_range(
    model: onnx.ModelProto, all_rows: Sequence[SizedRows], *, batched: bool
) -> dict[str, str]:
    """Returns the values of half types that their types cannot hold, and what happens, in words.

    Args:
        model: A graph of half types.
        all_rows: The rows to look at, of each size; those that are extreme on purpose are left out.
    """
    halves = typed_graph.half_values(model)
    inverted = _inverted(model)
    largest: dict[str, float] = {}
    least = dict.fromkeys(inverted, np.inf)
    for rows in all_rows:
        _watch(model, halves, usual(rows), largest, least, batched=batched)
    beyond = {}
    for name, kind in halves.items():
        limits = _limits(kind)
        if largest.get(name, 0.0) > HEADROOM * float(limits.max):
            beyond[name] = f"reaches {largest[name]:.3g} (the type holds {float(limits.max):.3g})"
        elif least.get(name, np.inf) < _least(kind):
            beyond[name] = f"falls to {least[name]:.3g}, and is inverted or its logarithm taken"
    return beyond


def _watch(
    model: onnx.ModelProto,
    halves: Mapping[str, int],
    rows: SizedRows,
    largest: dict[str, float],
    least: dict[str, float],
    *,
    batched: bool,
) -> None:
    """Runs rows, and notes the largest finite magnitude of each value before it is rounded.

    Args:
        least: Gets the least magnitude of the values that it has, without zeros.
    """

    def hook(_node: onnx.NodeProto, name: str, value: Array, _inputs: list[Array | None]) -> Array:
        if name not in halves or value.dtype != np.float32:
            return value
        sizes = np.abs(value[np.isfinite(value) & (value != 0)])
        largest[name] = max(largest.get(name, 0.0), float(sizes.max(initial=0.0)))
        if name in least:
            least[name] = min(least[name], float(sizes.min(initial=np.inf)))
        return round_value(value, halves[name])

    run_rows(GraphRun(model, exactly=False, hook=hook), rows, batched=batched)


def _limits(kind: int) -> Any:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    return ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]


def _least(kind: int) -> float:
    """Returns the least magnitude of a number that a half type holds without losing its digits."""
    return float(_limits(kind).tiny) * 2.0**-LOST_BITS


def _inverted(model: onnx.ModelProto) -> set[str]:
    """Returns the values of which a small number becomes a large one."""
    return {
        name
        for node in model.graph.node
        if node.op_type in _INVERSES
        for name in node.input[_INVERSES[node.op_type] :]
    }

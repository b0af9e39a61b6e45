"""The reference of an ONNX graph: its outputs in float64, and how far rounding moves them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from engines.contract import Array, Outputs
from engines.errors import DeployError
from exporters import onnx_files, typed_graph
from exporters.graph_run import GraphRun
from exporters.half_range import HEADROOM, LOST_BITS
from exporters.onnx_nodes import attribute
from exporters.wide_run import round_to
from pipeline.golden import noise
from pipeline.golden.file import EXTREMES
from pipeline.golden.reference import rows_to_keep
from pipeline.golden.rounding import move
from pipeline.workflow import console

# Numbers of the inputs that a graph is run on at a time.
_AT_ONCE = 1 << 20
# Rows that are compared with themselves in a batch.
_ALONE = 2
_UNIT = float(np.finfo(np.float32).eps)
# Operators that multiply or add weights. The constants of others, such as the scales of a Resize,
# are no rounded numbers.
_WEIGHTED = {
    *("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Gather", "PRelu"),
    *("BatchNormalization", "InstanceNormalization", "LayerNormalization", "GroupNormalization"),
    *("Add", "Sub", "Mul", "Div", "Einsum"),
}
# Runtimes approximate them to a unit of their range; see `rounding`.
_APPROXIMATED = {"Sigmoid", "Tanh", "Elu", "Softplus", "Erf"}
_ARGUMENT = {"Gelu", "Mish"}
# Runtimes compute the last elements of a tensor in another way than the others, so that equal
# numbers may give different ones. A graph that divides by max - min then divides by rounding.
_UNEVEN = {"Log", "Exp", "Pow"}
_SUMS = {"ReduceMean", "ReduceSum", "GlobalAveragePool"}
# Operators that turn a small number into a large one, and the first input of which they do.
_INVERSES = {"Sqrt": 0, "Log": 0, "Reciprocal": 0, "Div": 1}
_MOVED_KINDS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


@dataclass(frozen=True)
class SizedRows:
    """Golden inputs of one size.

    Attributes:
        inputs: By name, `[rows, …]`.
        cases: A name for each row.
    """

    inputs: dict[str, Array]
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Measured:
    """The outputs of a graph for rows of one size; all arrays are `[rows, …]`, by output.

    Attributes:
        rows: The rows without those whose outputs are NaN or Inf.
        reference: In float64.
        native: At the precision of the graph.
        noise: `[rows, 2]`, see `noise.measure`.
    """

    rows: SizedRows
    reference: Outputs
    native: Outputs
    noise: dict[str, Array]


def takes_batches(model: onnx.ModelProto, rows: SizedRows, tolerance: float) -> bool:
    """Whether a graph computes each row of a batch from that row alone.

    Args:
        model: The first axis of all its inputs and outputs is dynamic.
        rows: At least two rows.
        tolerance: How far a row in a batch may differ from that row alone, as a part of its largest
            output.
    """
    run = GraphRun(model, exactly=True)
    try:
        together = run({name: array[:_ALONE] for name, array in rows.inputs.items()})
    except DeployError:
        return False
    for row in range(_ALONE):
        alone = run({name: array[row : row + 1] for name, array in rows.inputs.items()})
        for name, array in together.items():
            if not array.ndim or len(array) != _ALONE or alone[name].shape != (1, *array.shape[1:]):
                return False
            expected = array[row : row + 1].astype(np.float64)
            error = np.abs(noise.difference(alone[name], expected)).max(initial=0.0)
            if not error <= tolerance * np.abs(expected).max(initial=0.0):
                return False
    return True


def measure(
    original: onnx.ModelProto,
    served: onnx.ModelProto,
    rows: SizedRows,
    *,
    batched: bool,
    noise_runs: int,
) -> Measured:
    """Runs a graph in float64 and, with its rounding drawn several times, in its own types.

    Args:
        original: The user's graph.
        served: The graph at the precision: `original` itself, or cast to a half type.
        batched: The first axis is the batch; otherwise each row is a run of its own.
        noise_runs: Runs that are rounded at random, besides the plain one.

    Raises:
        DeployError: The graph does not run on the rows, or a usual row gives NaN or Inf.
    """
    reference = run_rows(GraphRun(original, exactly=True), rows, batched=batched)
    halves = typed_graph.half_values(served) if _has_halves(served) else {}
    native = run_rows(_rounded(served, halves), rows, batched=batched)
    kept = rows_to_keep(rows.cases, native, reference)
    if not kept.all():
        left_out = [case for case, is_kept in zip(rows.cases, kept, strict=True) if not is_kept]
        console.say(
            f"export: rows left out, whose outputs are NaN or Inf: {', '.join(left_out[:5])}"
        )
    if not kept.any():
        raise DeployError(
            "every output is NaN or Inf on all rows", "give usual inputs by --inputs FILE.npz"
        )
    rows = SizedRows(
        {name: array[kept] for name, array in rows.inputs.items()},
        tuple(case for case, is_kept in zip(rows.cases, kept, strict=True) if is_kept),
    )
    reference, native = (
        {name: array[kept] for name, array in arrays.items()} for arrays in (reference, native)
    )
    runs = [native]
    for seed in range(noise_runs):
        runs.append(run_rows(_rounded(moved(served, seed), halves, seed), rows, batched=batched))
    measured = {
        name: noise.measure(array, [run[name] for run in runs]) for name, array in reference.items()
    }
    return Measured(rows, reference, _in_types_of(served, native), measured)


def _has_halves(model: onnx.ModelProto) -> bool:
    kinds = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    values = (*model.graph.input, *model.graph.output)
    return any(tensor.data_type in kinds for tensor in onnx_files.tensors(model)) or any(
        value.type.tensor_type.elem_type in kinds for value in values
    )


def _in_types_of(model: onnx.ModelProto, outputs: Outputs) -> Outputs:
    """Returns outputs in the types that a graph gives them."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    return {
        name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))
        for name, array in outputs.items()
    }


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


def moved(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Returns a graph of whose weights some are moved to a neighbouring number of their type."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    random = torch.Generator().manual_seed(seed)
    weights = {
        name for node in _nodes(copied.graph) if node.op_type in _WEIGHTED for name in node.input
    }
    named = [
        (tensor.name, tensor) for graph in _graphs(copied.graph) for tensor in graph.initializer
    ]
    named += [
        (node.output[0], entry.t)
        for node in _nodes(copied.graph)
        if node.op_type == "Constant"
        for entry in node.attribute
        if entry.name == "value"
    ]
    for name, tensor in named:
        if name in weights and tensor.data_type in _MOVED_KINDS:
            _move(tensor, random)
    return copied


def _move(tensor: onnx.TensorProto, random: torch.Generator) -> None:
    array = np.array(numpy_helper.to_array(tensor))
    if tensor.data_type == TensorProto.BFLOAT16:
        values = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        move(values, random)
        array = values.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    else:
        values = torch.from_numpy(array)
        move(values, random)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Returns a graph and all its subgraphs."""
    graphs = [graph]
    for known in graphs:
        for node in known.node:
            for entry in node.attribute:
                graphs += [entry.g] if entry.HasField("g") else [*entry.graphs]
    return graphs


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for known in _graphs(graph) for node in known.node]


def _rounded(
    model: onnx.ModelProto, halves: Mapping[str, int], seed: int | None = None
) -> GraphRun:
    """Returns a graph to be run in its own types, and range apart from rounding.

    Args:
        halves: Its values of half types.
        seed: Give approximated functions their error, in the way of `rounding.approximate`; None
            means not to.
    """
    way = 0.0 if seed is None or halves else _UNIT if seed % 2 else -_UNIT

    def hook(node: onnx.NodeProto, name: str, value: Array, inputs: list[Array | None]) -> Array:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            return value
        if name in halves:
            return _round(value, halves[name])
        first = inputs[0] if inputs else None
        if way and node.op_type in _SUMS and first is not None and first.dtype == np.float32:
            return _one_by_one(node, first, inputs, value)
        if way and node.op_type in _APPROXIMATED:
            return value + np.float32(way)
        if way and node.op_type in _UNEVEN:
            signs = np.resize(np.array([1, -1], np.float32), value.size).reshape(value.shape)
            uneven: Array = value + np.float32(way) * np.abs(value) * signs
            return uneven
        if way and node.op_type in _ARGUMENT and first is not None:
            return value + np.float32(way) * np.abs(first)
        return value

    return GraphRun(model, exactly=False, hook=hook)


def _round(value: Array, kind: int) -> Array:
    """Rounds float32 numbers to the digits of a half type, whatever their exponents."""
    dtype = torch.bfloat16 if kind == TensorProto.BFLOAT16 else torch.float16
    return round_to(torch.from_numpy(np.array(value, order="C")), dtype).numpy()


def _one_by_one(
    node: onnx.NodeProto, array: Array, inputs: list[Array | None], result: Array
) -> Array:
    """Returns a sum or mean whose terms are added one by one, as engines may do."""
    axes = attribute(node, "axes")
    if node.op_type == "GlobalAveragePool":
        axes = range(2, array.ndim)
    elif axes is None and len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1].tolist()
    elif axes is None:
        axes = range(array.ndim)
    chosen = sorted({axis % array.ndim for axis in axes})
    if not chosen:
        return result
    count = int(np.prod([array.shape[axis] for axis in chosen]))
    moved_axes = np.moveaxis(array, chosen, range(len(chosen)))
    terms = np.ascontiguousarray(moved_axes).reshape(count, -1)
    # numpy adds row by row over the slowest axis.
    total = np.add.reduce(terms, axis=0).reshape(result.shape)
    mean: Array = total / np.float32(count)
    return total if node.op_type == "ReduceSum" else mean


def usual(rows: SizedRows) -> SizedRows:
    """Returns the rows that are not extreme on purpose."""
    chosen = ~np.isin(rows.cases, EXTREMES)
    return SizedRows(
        {name: array[chosen] for name, array in rows.inputs.items()},
        tuple(np.array(rows.cases)[chosen].tolist()),
    )


def out_of_range(
    model: onnx.ModelProto, all_rows: Sequence[SizedRows], *, batched: bool
) -> dict[str, str]:
    """Returns the values of half types that their types cannot hold, and what happens, in words.

    Args:
        model: A graph of half types.
        all_rows: The rows to look at, of each size; those that are extreme on purpose are left out.
    """
    halves = typed_graph.half_values(model)
    inverted = {
        name
        for node in model.graph.node
        if node.op_type in _INVERSES
        for name in node.input[_INVERSES[node.op_type] :]
    }
    largest: dict[str, float] = {}
    least: dict[str, float] = {}

    def hook(_node: onnx.NodeProto, name: str, value: Array, _inputs: list[Array | None]) -> Array:
        if name not in halves or value.dtype != np.float32:
            return value
        sizes = np.abs(value[np.isfinite(value) & (value != 0)])
        largest[name] = max(largest.get(name, 0.0), float(sizes.max(initial=0.0)))
        if name in inverted:
            least[name] = min(least.get(name, np.inf), float(sizes.min(initial=np.inf)))
        return _round(value, halves[name])

    for rows in all_rows:
        run_rows(GraphRun(model, exactly=False, hook=hook), usual(rows), batched=batched)
    beyond = {}
    for name, kind in halves.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        if largest.get(name, 0.0) > HEADROOM * float(limits.max):
            beyond[name] = f"reaches {largest[name]:.3g} (the type holds {float(limits.max):.3g})"
        elif least.get(name, np.inf) < float(limits.tiny) * 2.0**-LOST_BITS:
            beyond[name] = f"falls to {least[name]:.3g}, and is inverted or its logarithm taken"
    return beyond

"""The reference of an ONNX graph: its outputs in float64, and how far rounding moves them."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
from exporters.half_graph import opset_of
from exporters.onnx_nodes import attribute, graphs_of, named_constants, nodes_of
from pipeline.golden import graph_ranges, noise
from pipeline.golden.file import Reference
from pipeline.golden.graph_ranges import SizedRows, round_value, run_rows
from pipeline.golden.reference import rows_to_keep
from pipeline.golden.rounding import move
from pipeline.workflow import console

_NAMED = 5  # rows that a message names
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
_EXPONENTIALS = {"Softmax", "LogSoftmax"}
_LANES = 4  # sums that the smallest vector units keep at a time
_ONE_AXIS = 13  # the first opset in which these are along one axis
_SUMS = {"ReduceMean", "ReduceSum", "GlobalAveragePool"}
_MOVED_KINDS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


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

    def as_reference(self, precision: str, max_drop: float, *, batched: bool) -> Reference:
        """Returns what an engine has to reproduce for these rows; see `Reference`."""
        return Reference(
            inputs=self.rows.inputs,
            reference=self.reference,
            native=self.native,
            noise=self.noise,
            cases=self.rows.cases,
            logits="",
            labels=np.zeros(0, np.int64),
            test_reference=np.zeros((0, 0)),
            test_labels=np.zeros(0, np.int64),
            precision=precision,
            max_drop=max_drop,
            batched=batched,
        )


def takes_batches(run: GraphRun, rows: SizedRows, tolerance: float) -> bool:
    """Whether a graph computes each row of a batch from that row alone.

    Args:
        run: The graph in float64; the first axis of all its inputs and outputs is dynamic.
        rows: At least two rows.
        tolerance: How far a row in a batch may differ from that row alone, as a part of its largest
            output.
    """
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
    if halves:
        kept &= graph_ranges.fitting(served, halves, rows, batched=batched)
    if not kept.all():
        left_out = [case for case, is_kept in zip(rows.cases, kept, strict=True) if not is_kept]
        console.say(
            "export: rows left out, whose outputs are NaN or Inf, or whose values the precision"
            f" cannot hold: {', '.join(left_out[:_NAMED])}"
        )
    if not kept.any():
        raise DeployError(
            "every output is NaN or Inf on all rows", "give usual inputs by --inputs FILE.npz"
        )
    rows = rows.take(np.flatnonzero(kept))
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
    return (
        any(tensor.data_type in kinds for tensor in onnx_files.tensors(model))
        or any(value.type.tensor_type.elem_type in kinds for value in values)
        or any(attribute(node, "to") in kinds for node in nodes_of(model.graph))
    )


def _in_types_of(model: onnx.ModelProto, outputs: Outputs) -> Outputs:
    """Returns outputs in the types that a graph gives them."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    return {
        name: array.astype(onnx.helper.tensor_dtype_to_np_dtype(kinds[name]))
        for name, array in outputs.items()
    }


def moved(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """Returns a graph of whose weights some are moved to a neighbouring number of their type."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    random = torch.Generator().manual_seed(seed)
    weights = {
        name for node in nodes_of(copied.graph) if node.op_type in _WEIGHTED for name in node.input
    }
    for graph in graphs_of(copied.graph):
        for name, tensor in named_constants(graph):
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


def _rounded(
    model: onnx.ModelProto, halves: Mapping[str, int], seed: int | None = None
) -> GraphRun:
    """Returns a graph to be run in its own types, and range apart from rounding.

    Args:
        halves: Its values of half types.
        seed: Give approximated functions their error, in the way of `rounding.approximate`; None
            means not to.
    """
    opset = opset_of(model)
    way = 0.0 if seed is None or halves else _UNIT if seed % 2 else -_UNIT

    def hook(node: onnx.NodeProto, name: str, value: Array, inputs: list[Array | None]) -> Array:
        if not isinstance(value, np.ndarray) or value.dtype != np.float32:
            return value
        if name in halves:
            return round_value(value, halves[name])
        first = inputs[0] if inputs else None
        if way and node.op_type in _SUMS and first is not None and first.dtype == np.float32:
            return _one_by_one(node, first, inputs, value)
        if way and node.op_type in _EXPONENTIALS and first is not None:
            return _softmax_in_lanes(node, first, opset)
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


def _softmax_in_lanes(node: onnx.NodeProto, array: Array, opset: int) -> Array:
    """Returns a softmax or its logarithm, with the exponentials added as a small vector unit does.

    Of 6,625 classes, ONNX Runtime's sum lost 5 of its 24 bits.
    """
    if opset < _ONE_AXIS:  # the axes from this one on are taken together
        first = attribute(node, "axis", 1) % max(1, array.ndim)
        matrix = array.reshape(math.prod(array.shape[:first]), -1)
        return _lanes_of(node, matrix, 1).reshape(array.shape)
    return _lanes_of(node, array, attribute(node, "axis", -1))


def _lanes_of(node: onnx.NodeProto, array: Array, axis: int) -> Array:
    shifted = array - array.max(axis=axis, keepdims=True)
    exponentials = np.exp(shifted)
    terms = np.moveaxis(exponentials, axis, 0)
    lanes = np.zeros((_LANES, *terms.shape[1:]), np.float32)
    for start in range(0, len(terms), _LANES):
        part = terms[start : start + _LANES]
        lanes[: len(part)] += part
    total = np.expand_dims(lanes.sum(axis=0), axis)
    result: Array = exponentials / total if node.op_type == "Softmax" else shifted - np.log(total)
    return result


def _one_by_one(
    node: onnx.NodeProto, array: Array, inputs: list[Array | None], result: Array
) -> Array:
    """Returns a sum or mean whose terms are added one by one, as engines may do."""
    axes = attribute(node, "axes")
    if node.op_type == "GlobalAveragePool":
        axes = range(2, array.ndim)
    elif axes is None and len(inputs) > 1 and inputs[1] is not None:
        axes = inputs[1].tolist()
    elif axes is None and not attribute(node, "noop_with_empty_axes", 0):
        axes = range(array.ndim)
    chosen = sorted({axis % array.ndim for axis in axes or ()})
    if not chosen:
        return result
    count = int(np.prod([array.shape[axis] for axis in chosen]))
    moved_axes = np.moveaxis(array, chosen, range(len(chosen)))
    terms = np.ascontiguousarray(moved_axes).reshape(count, -1)
    # numpy adds row by row over the slowest axis.
    total = np.add.reduce(terms, axis=0).reshape(result.shape)
    mean: Array = total / np.float32(count)
    return total if node.op_type == "ReduceSum" else mean

"""A graph of half types in a form that any runtime computes as the graph says.

ONNX Runtime's CPU provider computes float16 in float32 and stores no value in between in float16,
so nothing overflows there; and bfloat16 it mostly cannot compute. So each node is put into float32,
and its value is rounded by two casts to the type that the graph gives it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx_describe import value_types

_HALF = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_UNROUNDED = "__unrounded"
# They move numbers or pick some: nothing is left to be rounded.
_MOVES = {
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Slice", "Split"),
    *("Concat", "Gather", "GatherElements", "GatherND", "Expand", "Tile", "MaxPool", "Relu"),
    *("GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min", "Where", "Neg", "Abs", "Pad"),
    *("DepthToSpace", "SpaceToDepth", "ScatterElements", "ScatterND", "Constant", "Dropout"),
}


def half_values(model: onnx.ModelProto) -> dict[str, int]:
    """Returns the graph's values of float16 and bfloat16, by name, with ONNX's number of the type.

    Raises:
        DeployError: The types of the graph do not fit together.
    """
    return {name: _HALF[dtype] for name, (dtype, _) in value_types(model).items() if dtype in _HALF}


def can_round(model: onnx.ModelProto) -> bool:
    """Whether `as_typed` can be applied: no half type in a subgraph or function."""
    nested = [
        attribute.g
        for node in model.graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    ]
    return not model.functions and not nested


def as_typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph in float32 whose every value is rounded to the type that `model` gives it.

    Inputs and outputs keep their names and types. Overflow gives infinity, as in the type itself.

    Args:
        model: A valid graph for which `can_round` is true.
    """
    halves = half_values(model)
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    graph = typed.graph
    del graph.value_info[:]
    for tensor in graph.initializer:
        _widen(tensor)
    nodes: list[onnx.NodeProto] = []
    inputs = {value.name for value in graph.input} & halves.keys()
    outputs = {value.name for value in graph.output} & halves.keys()
    renamed = {name: f"{name}__in_float32" for name in inputs | outputs}
    nodes += [_cast(name, renamed[name], TensorProto.FLOAT) for name in sorted(inputs)]
    for node in graph.node:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        _widen_attributes(copied)
        copied.input[:] = [renamed.get(name, name) for name in node.input]
        rounded = [name for name in node.output if name in halves]
        if copied.op_type in _MOVES or not rounded:
            copied.output[:] = [renamed.get(name, name) for name in node.output]
            nodes.append(copied)
            continue
        copied.output[:] = [f"{n}{_UNROUNDED}" if n in halves else n for n in node.output]
        nodes.append(copied)
        for name in rounded:
            nodes += _round(f"{name}{_UNROUNDED}", renamed.get(name, name), halves[name])
    nodes += [_cast(renamed[name], name, halves[name]) for name in sorted(outputs)]
    del graph.node[:]
    graph.node.extend(nodes)
    return typed


def with_peaks(typed: onnx.ModelProto, names: Iterable[str]) -> dict[str, str]:
    """Adds outputs to a graph that `as_typed` made: the largest magnitude of values.

    Args:
        names: Values of the graph that it was made of.

    Returns:
        By the value's name, that of the output: a number, before the value was rounded.
    """
    given = {output for node in typed.graph.node for output in node.output}
    peaks = {}
    for name in names:
        unrounded = f"{name}{_UNROUNDED}"
        if unrounded not in given:
            continue
        size, peak = f"{name}__size", f"{name}__peak"
        typed.graph.node.append(helper.make_node("Abs", [unrounded], [size]))
        typed.graph.node.append(helper.make_node("ReduceMax", [size], [peak], keepdims=0))
        typed.graph.output.append(helper.make_tensor_value_info(peak, TensorProto.FLOAT, []))
        peaks[name] = peak
    return peaks


def _cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=dtype, name=f"{target}__cast")


def _round(source: str, target: str, dtype: int) -> list[onnx.NodeProto]:
    narrow = f"{target}__rounded"
    return [_cast(source, narrow, dtype), _cast(narrow, target, TensorProto.FLOAT)]


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _HALF.values():
        array = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _widen_attributes(node: onnx.NodeProto) -> None:
    """Puts constants, and the type that a node is told to give, into float32."""
    for attribute in node.attribute:
        if attribute.HasField("t"):
            _widen(attribute.t)
        if attribute.name in ("to", "dtype", "output_dtype") and attribute.i in _HALF.values():
            attribute.i = TensorProto.FLOAT

"""Chooses the nodes that a quantized graph computes in float."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx
from onnx import numpy_helper

from exporters.onnx_nodes import attribute

# Constants this large mark masked positions, such as -1e9, -inf or the least number of fp32. A
# range that holds one has no steps left for the other values.
_MASK = 1e4
# Operators that pass on the values of their inputs.
_MOVES = ("Concat", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


def nodes_in_float(
    model: onnx.ModelProto, operators: Collection[str], unbounded: Collection[str]
) -> dict[str, str]:
    """Returns the nodes to leave in float by name, and why, in words.

    Args:
        operators: The types of the nodes that would be quantized.
        unbounded: Activations that are infinite or saturated on some rows.
    """
    reasons = dict.fromkeys(unbounded, "is infinite or saturated on some rows")
    reasons |= _masked(model.graph)
    sums = _sums_into_softmax(model.graph)
    kept = {}
    for node in model.graph.node:
        if node.op_type not in operators:
            continue
        masked = [name for name in node.input if name in reasons]
        if node.name in sums:
            kept[node.name] = "adds a mask or bias to the scores of a softmax"
        elif masked:
            kept[node.name] = f"reads {masked[0]}, which {reasons[masked[0]]}"
        elif _has_grouped_channels(node, model.graph):
            kept[node.name] = "is a transposed convolution in groups"
    return kept


def _sums_into_softmax(graph: onnx.GraphProto) -> set[str]:
    """Returns the names of the additions whose result a softmax reads.

    They add masks. The calibration rows may have no masked position, so the mask's range may not
    show that it is one.
    """
    makers = {name: node for node in graph.node for name in node.output}
    pending = [node.input[0] for node in graph.node if node.op_type in ("Softmax", "LogSoftmax")]
    sums: set[str] = set()
    visited: set[str] = set()
    while pending:
        value = pending.pop()
        node = makers.get(value)
        if node is None or value in visited:
            continue
        visited.add(value)
        if node.op_type == "Add":
            sums.add(node.name)
        if node.op_type == "Add" or node.op_type in _MOVES:
            pending += node.input
    return sums


def _masked(graph: onnx.GraphProto) -> dict[str, str]:
    """Returns the values that hold a mask's constant, and what they hold, in words."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and attribute(node, "value") is not None:
            constants[node.output[0]] = attribute(node, "value")
    masked = {}
    for name, tensor in constants.items():
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            masked[name] = "holds infinity"
    for node in graph.node:
        if node.op_type == "Where":
            for name in node.input[1:]:
                peak = _scalar(constants.get(name))
                if peak >= _MASK:
                    masked[node.output[0]] = f"is masked by a constant of size {peak:.3g}"
        elif node.op_type in _MOVES:
            for name in node.input:
                if name in masked:
                    masked[node.output[0]] = masked[name]
    return masked


def _scalar(tensor: onnx.TensorProto | None) -> float:
    """Returns the size of a float constant of one element; 0 for anything else."""
    if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
        return 0.0
    array = numpy_helper.to_array(tensor)
    return float(np.abs(array).max()) if array.size == 1 else 0.0


def _has_grouped_channels(node: onnx.NodeProto, graph: onnx.GraphProto) -> bool:
    """Whether a node is a transposed convolution with several output channels in each group.

    Its weight is [in, out / group, ...]: one scale for each channel of a group is not one for each
    output channel, which ONNX Runtime needs to quantize the bias.
    """
    if node.op_type != "ConvTranspose" or attribute(node, "group", 1) == 1:
        return False
    weights = [tensor for tensor in graph.initializer if tensor.name == node.input[1]]
    return not weights or weights[0].dims[1] > 1

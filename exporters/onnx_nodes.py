"""Reads and edits the nodes and constants of an ONNX graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx

from engines.contract import TensorSpec

# The first version of ONNX's files whose constants need not be inputs.
_FREE_CONSTANTS = 4


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Returns the value of an attribute of a node; `default` if the node leaves it out."""
    for entry in node.attribute:
        if entry.name == name:
            return onnx.helper.get_attribute_value(entry)
    return default


def graphs_of(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Returns a graph and all its subgraphs."""
    graphs = [graph]
    for known in graphs:
        for node in known.node:
            for entry in node.attribute:
                graphs += [entry.g] if entry.HasField("g") else [*entry.graphs]
    return graphs


def nodes_of(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Returns the nodes of a graph and of all its subgraphs."""
    return [node for known in graphs_of(graph) for node in known.node]


def named_constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Yields the constants of one graph with their names: initializers, and what Constants give."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if value is not None:
            yield node.output[0], value


def remove_unread_constants(graph: onnx.GraphProto) -> None:
    """Removes the initializers that neither a node nor an output reads."""
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Returns the name, dtype and shape of a graph's input or output."""
    tensor = value.type.tensor_type
    untyped = tensor.elem_type == onnx.TensorProto.UNDEFINED
    dtype = "" if untyped else onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    # Some exporters write -1 for an axis of any size.
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None
        for dim in tensor.shape.dim
    )
    return TensorSpec(value.name, dtype, shape, tuple(dim.dim_param for dim in tensor.shape.dim))


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Returns the inputs that have to be given: old graphs list their constants as inputs, too."""
    constants = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constants]


def with_fixed_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph that does not list its constants as inputs, as old graphs do."""
    inputs = inputs_of(model.graph)
    if len(inputs) == len(model.graph.input):
        return model
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    del fixed.graph.input[:]
    fixed.graph.input.extend(inputs)
    fixed.ir_version = max(_FREE_CONSTANTS, fixed.ir_version)
    return fixed

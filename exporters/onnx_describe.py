"""Describes a graph: its signature, operators, size, and the type each node computes in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from engines.errors import DeployError
from engines.layer_report import precision
from exporters import PRECISIONS, QUANTIZED
from exporters.onnx_nodes import attribute, inputs_of, spec_of

_DEQUANTIZE = ("DequantizeLinear",)
_SMALL = 1024  # constants of up to this many elements may hold a shape
# Operators that only convert or hold values.
_PLUMBING = ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "Identity")


@dataclass(frozen=True)
class Node:
    """A node that computes.

    Attributes:
        precision: The type it computes in, such as "fp16". For a node whose inputs are all
            dequantized right before it, the quantized type, since backends fuse the two.
        multiply_adds: For one row of the batch; 0 unless it is a convolution or matrix product.
            None if another axis of the inputs is dynamic, too: then it depends on its size.
    """

    name: str
    operator: str
    precision: str
    multiply_adds: int | None


@dataclass(frozen=True)
class Description:
    """What `assay inspect` prints.

    Attributes:
        inputs: Name, dtype and shape of each input, as text.
        outputs: Name, dtype and shape of each output, as text.
        opset: Version of the standard domain.
        operators: Number of nodes of each operator.
        parameters: Number of elements in the graph's constants.
        size: Size of the constants in bytes.
        nodes: The nodes that compute.
        metadata: The graph's metadata properties.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    operators: dict[str, int]
    parameters: int
    size: int
    nodes: tuple[Node, ...]
    metadata: dict[str, str]

    @property
    def precisions(self) -> dict[str, int]:
        """Number of nodes that compute in each type."""
        return dict(Counter(node.precision for node in self.nodes).most_common())

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of the whole graph, for one row of the batch; see `Node`."""
        counts = [node.multiply_adds for node in self.nodes]
        return None if None in counts else sum(count or 0 for count in counts)

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        totals = {"precisions": self.precisions, "multiply_adds": self.multiply_adds}
        return {**asdict(self), **totals}


def describe(model: onnx.ModelProto) -> Description:
    """Describes a valid graph, without its subgraphs."""
    graph = model.graph
    types = value_types(model)
    makers = {name: node for node in graph.node for name in node.output}
    inputs = [spec_of(value) for value in inputs_of(graph)]
    known_size = not any(None in spec.shape[1:] for spec in inputs)
    sizes = [(math.prod(t.dims), t.data_type) for t in graph.initializer]
    return Description(
        inputs=tuple(map(str, inputs)),
        outputs=tuple(str(spec_of(value)) for value in graph.output),
        opset=next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        operators=dict(Counter(node.op_type for node in graph.node).most_common()),
        parameters=sum(count for count, _ in sizes),
        size=sum(
            count * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for count, kind in sizes
        ),
        nodes=tuple(
            Node(
                node.name or node.output[0],
                node.op_type,
                _precision(node, types, makers),
                _multiply_adds(node, types) if known_size else None,
            )
            for node in graph.node
            if node.op_type not in _PLUMBING
        ),
        metadata={entry.key: entry.value for entry in model.metadata_props},
    )


def _without_data(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a graph with its large constants turned into inputs.

    With the constants it may be too large for shape inference, and shapes depend on small
    constants only.
    """
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.functions.extend(model.functions)
    for part in ("node", "input", "output", "value_info"):
        getattr(light.graph, part).extend(getattr(model.graph, part))
    light.graph.name = model.graph.name
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            )
    return light


def add_group_norm_types(model: onnx.ModelProto) -> None:
    """Adds the types of the outputs of GroupNormalization, which ONNX does not infer.

    ONNX has no inference for this operator, and that of its function body fails.
    """
    pending = [node for node in model.graph.node if node.op_type == "GroupNormalization"]
    while pending:
        graph = onnx.shape_inference.infer_shapes(model).graph
        known = {value.name: value for value in (*graph.value_info, *graph.input)}
        typed = [node for node in pending if node.input[0] in known]
        if not typed:
            return
        for node in typed:
            value = onnx.ValueInfoProto()
            value.CopyFrom(known[node.input[0]])
            value.name = node.output[0]
            model.graph.value_info.append(value)
        pending = [node for node in pending if node not in typed]


_Types = Mapping[str, tuple[str, tuple[int, ...]]]


def value_types(model: onnx.ModelProto) -> _Types:
    """Returns dtype and shape of every value of a graph, 1 for a dynamic axis.

    Raises:
        DeployError: The types of the graph do not fit together.
    """
    light = _without_data(model)
    add_group_norm_types(light)
    try:
        graph = onnx.shape_inference.infer_shapes(light, strict_mode=True).graph
    except onnx.shape_inference.InferenceError as error:
        raise DeployError(
            f"the types of the graph's values cannot be inferred: {error}",
            "the message names the node; export with another --opset or --exporter",
        ) from error
    types = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        spec = spec_of(value)
        types[value.name] = spec.dtype, tuple(axis or 1 for axis in spec.shape)
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        types[tensor.name] = dtype, tuple(tensor.dims)
    return types


def _precision(node: onnx.NodeProto, types: _Types, makers: Mapping[str, onnx.NodeProto]) -> str:
    floats = [name for name in node.input if types.get(name, ("",))[0].startswith(("float", "bf"))]
    # A bias stays in float: it is added to the integer sum.
    data = floats[:2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") else floats
    if data and all(name in makers and makers[name].op_type in _DEQUANTIZE for name in data):
        stored = {types.get(makers[name].input[0], ("",))[0] for name in data}
        return next(
            (name for name in QUANTIZED if PRECISIONS[name].weights in stored), QUANTIZED[0]
        )
    dtype = types.get(node.output[0], ("?",))[0]
    return precision(dtype)


def _multiply_adds(node: onnx.NodeProto, types: _Types) -> int:
    """Returns the multiply-adds of a convolution or matrix product, for one row."""
    shapes = [types.get(name, ("", ()))[1] for name in node.input]
    if () in shapes[:2] or node.output[0] not in types:
        return 0  # shape inference stops at operators that ONNX does not define
    out = math.prod(types[node.output[0]][1])
    if node.op_type == "Conv":  # weight [out, in / group, *kernel]
        return out * math.prod(shapes[1][1:])
    if node.op_type == "ConvTranspose":  # weight [in, out / group, *kernel]
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if node.op_type == "Gemm":
        transposed = attribute(node, "transA", 0)
        return out * shapes[0][0 if transposed else -1]
    if node.op_type == "MatMul":
        return out * shapes[0][-1]
    return 0

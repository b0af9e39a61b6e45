"""Describes a graph: signature, operators, size, and the type and multiply-adds of each node."""

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
from exporters.multiply_adds import Types, multiply_adds
from exporters.onnx_nodes import inputs_of, spec_of

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
        multiply_adds: For one row of the batch; 0 unless it is a convolution, a matrix product, a
            recurrent layer or an attention. Those with a convolution's padding count, as is usual.
            None if they are not known; see `multiply_adds`. If another axis of the inputs is
            dynamic, they depend on its size.
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
                node_precision(node, types, makers),
                multiply_adds(node, types, padding=True) if known_size else None,
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


def _fix_shapes(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives inputs fixed shapes, and forgets the shapes of all values that depend on them."""
    for value in graph.input:
        if value.name in shapes and value.type.HasField("tensor_type"):
            axes = value.type.tensor_type.shape
            axes.Clear()
            axes.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[value.name]
            )
    del graph.value_info[:]
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def value_types(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Types:
    """Returns dtype and shape of every value of a graph, 1 for a dynamic axis.

    Args:
        shapes: Shapes of inputs, in place of those in the graph.

    Raises:
        DeployError: The types of the graph do not fit together.
    """
    light = _without_data(model)
    if shapes is not None:
        _fix_shapes(light.graph, shapes)
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
        types[value.name] = spec.dtype, tuple(1 if axis is None else axis for axis in spec.shape)
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).name
        types[tensor.name] = dtype, tuple(tensor.dims)
    return types


def node_precision(node: onnx.NodeProto, types: Types, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Returns the type that a node computes in; see `Node`."""
    floats = [name for name in node.input if types.get(name, ("",))[0].startswith(("float", "bf"))]
    # A bias stays in float: it is added to the integer sum.
    data = floats[:2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") else floats
    if data and all(name in makers and makers[name].op_type in _DEQUANTIZE for name in data):
        stored = {types.get(makers[name].input[0], ("",))[0] for name in data}
        return next(
            (name for name in QUANTIZED if PRECISIONS[name].weights in stored), QUANTIZED[0]
        )
    if node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
        return QUANTIZED[0]  # these multiply integers of 8 bits, whatever their output is
    dtype = types.get(next(filter(None, node.output), ""), ("?",))[0]
    return precision(dtype)

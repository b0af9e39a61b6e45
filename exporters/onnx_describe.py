"""Describes a graph: signature, operators, size, the type of each node, and its work."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import onnx

from engines.errors import DeployError
from engines.layer_report import precision
from exporters import PRECISIONS, QUANTIZED
from exporters.onnx_nodes import attribute, inputs_of, named_constants, spec_of
from exporters.work import Product, Work

_DEQUANTIZE = ("DequantizeLinear",)
_SMALL = 1024  # constants of up to this many elements may hold a shape
# Operators that only convert or hold values.
_PLUMBING = ("QuantizeLinear", "DequantizeLinear", "Cast", "Constant", "Identity")
# Convolutions and matrix products, with the places of their two factors among the inputs.
_CONVOLUTIONS = {"Conv": (0, 1), "ConvInteger": (0, 1), "QLinearConv": (0, 3)}
_MATRIX_PRODUCTS = {"MatMul": (0, 1), "MatMulInteger": (0, 1), "QLinearMatMul": (0, 3)}
# What runtimes fuse with the product before it.
_FUSED = frozenset(
    {
        *(
            "Add",
            "BatchNormalization",
            "Clip",
            "Elu",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
        ),
        *("LeakyRelu", "Mul", "QuantizeLinear", "Relu", "Sigmoid", "Swish", "Tanh"),
    }
)
_RECURRENT = ("RNN", "GRU", "LSTM")
# These read no more of their first input than they write.
_PICKING = ("Gather", "GatherElements", "GatherND", "Slice")


@dataclass(frozen=True)
class Node:
    """A node that computes.

    Attributes:
        precision: The type it computes in, such as "fp16". For a node whose inputs are all
            dequantized right before it, the quantized type, since backends fuse the two.
        multiply_adds: For one row of the batch; 0 unless it is a convolution, a matrix product, a
            recurrent layer or an attention.
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


def work_of(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Work:
    """Returns the work of one inference on inputs of given shapes, by input.

    Operators other than convolutions, matrix products, recurrent layers and attention count as
    nothing, and so do subgraphs. A size that depends on the values of the inputs counts as 1.
    Of a constant from which elements are only picked, such as the table of an embedding, no more
    counts than what is picked.

    Raises:
        DeployError: The types of the graph do not fit together, or do not fit the shapes.
    """
    graph = model.graph
    types = value_types(model, shapes)
    makers = {name: node for node in graph.node for name in node.output}
    sizes: dict[str, int] = {
        name: math.prod(tensor.dims)
        * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for name, tensor in named_constants(graph)
    }

    def stored(name: str) -> int:
        maker = makers.get(name)
        dequantized = maker is not None and maker.op_type in _DEQUANTIZE
        return sizes.get(maker.input[0] if maker is not None and dequantized else name, 0)

    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    products = tuple(
        Product(
            names=frozenset(_fused_names(node, users)),
            precision=_precision(node, types, makers),
            operations=2 * count,
            weights=sum(map(stored, node.input)),
        )
        for node in graph.node
        if (count := _multiply_adds(node, types))
    )
    operations: Counter[str] = Counter()
    for product in products:
        operations[product.precision] += product.operations
    return Work(
        operations=dict(operations.most_common()),
        weights=round(
            sum(
                sizes[name] * _part_read(name, math.prod(tensor.dims), users, types)
                for name, tensor in named_constants(graph)
            )
        ),
        inputs=sum(_bytes(value, types) for value in inputs_of(graph)),
        outputs=sum(_bytes(value, types) for value in graph.output),
        products=products,
    )


def _part_read(
    name: str, count: int, users: Mapping[str, list[onnx.NodeProto]], types: _Types
) -> float:
    """Returns the part of a constant that its users read at most.

    It is 1 unless all of them only pick some of its elements, as an embedding does.
    """
    picked = 0
    for node in users.get(name, ()):
        if node.op_type not in _PICKING or name in node.input[1:] or node.output[0] not in types:
            return 1.0
        picked += math.prod(types[node.output[0]][1])
    return min(1.0, picked / count) if picked and count else 1.0


def _fused_names(node: onnx.NodeProto, users: Mapping[str, list[onnx.NodeProto]]) -> Iterator[str]:
    """Yields the names of a node, and of those after it that runtimes compute together with it."""
    yield from filter(None, (node.name, *node.output))
    for output in node.output:
        for user in users.get(output, ()):
            if user.op_type in _FUSED:
                yield from _fused_names(user, users)


def _bytes(value: onnx.ValueInfoProto, types: _Types) -> int:
    item = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize
    return math.prod(types[value.name][1]) * item


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


def _fix_shapes(graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives inputs fixed shapes, and forgets the shapes of all values that depend on them."""
    for value in graph.input:
        if value.name in shapes:
            axes = value.type.tensor_type.shape
            axes.Clear()
            axes.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=size) for size in shapes[value.name]
            )
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")


def value_types(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> _Types:
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
    if node.op_type.startswith("QLinear") or node.op_type.endswith("Integer"):
        return QUANTIZED[0]  # these multiply integers of 8 bits, whatever their output is
    dtype = types.get(next(filter(None, node.output), ""), ("?",))[0]
    return precision(dtype)


def _multiply_adds(node: onnx.NodeProto, types: _Types) -> int:
    """Returns the multiply-adds of a node; 0 unless it is one of the operators named here."""
    shapes = [types.get(name, ("", ()))[1] for name in node.input]
    output = next(filter(None, node.output), "")  # recurrent layers may leave out the first
    kind = node.op_type
    factors = {**_CONVOLUTIONS, **_MATRIX_PRODUCTS}.get(kind, (0, 1))
    if () in [shapes[place] for place in factors if place < len(shapes)] or output not in types:
        return 0  # shape inference stops at operators that ONNX does not define
    out = math.prod(types[output][1])
    if kind in _CONVOLUTIONS:  # weight [out, in / group, *kernel]
        return out * math.prod(shapes[_CONVOLUTIONS[kind][1]][1:])
    if kind == "ConvTranspose":  # weight [in, out / group, *kernel]
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if kind == "Gemm":
        transposed = attribute(node, "transA", 0)
        return out * shapes[0][0 if transposed else -1]
    if kind in _MATRIX_PRODUCTS:
        return out * shapes[_MATRIX_PRODUCTS[kind][0]][-1]
    if kind in _RECURRENT:  # steps x rows, with the weights of all directions
        return math.prod(shapes[0][:2]) * (math.prod(shapes[1]) + math.prod(shapes[2]))
    if kind == "Attention":
        return _attention(node, shapes[0], shapes[1], shapes[2])
    return 0


def _attention(
    node: onnx.NodeProto, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]
) -> int:
    """Returns the multiply-adds of both products of an Attention, without a cache of keys.

    Shapes are [rows, heads, length, size] or [rows, length, heads x size].
    """
    if len(query) == 4:  # noqa: PLR2004
        pairs = math.prod(query[:3]) * key[2]
        return pairs * (query[3] + value[3])
    pairs = query[0] * query[1] * key[1]
    groups: int = attribute(node, "q_num_heads", 1) // attribute(node, "kv_num_heads", 1)
    return pairs * (query[2] + groups * value[2])

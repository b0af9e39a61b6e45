"""The work of a graph: what its products compute, and the bytes that no engine can avoid."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx.inliner
from onnx import TensorProto

from exporters.multiply_adds import CONVOLUTIONS, Types, multiply_adds, weights_met
from exporters.onnx_describe import node_precision, value_types
from exporters.onnx_nodes import attribute, inputs_of, named_constants
from exporters.work import Product, Work

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
# Elements in a byte of the types that ONNX packs; numpy's take a whole one.
_IN_A_BYTE: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1), 2),
    **dict.fromkeys((TensorProto.INT2, TensorProto.UINT2), 4),
}
# These read no more of their first input than they write.
_PICKING = ("Gather", "GatherElements", "GatherND", "Slice")
# These write an element for each of their first input.
_CONVERTING = ("Cast", "DequantizeLinear", "Identity")


def work_of(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Work:
    """Returns the work of one inference on inputs of given shapes, by input.

    Operations are those of convolutions, matrix products, recurrent layers and attention; of a
    convolution, only those that no padding takes part in. A size that depends on the values of the
    inputs counts as 1. Inputs and outputs other than tensors, such as sequences, count as nothing.

    Raises:
        DeployError: The types of the graph do not fit together, or do not fit the shapes.
    """
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    graph = model.graph
    types = value_types(model, shapes)
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(node.input):
            users.setdefault(name, []).append(node)
    reads = _Reads(users, types, frozenset(value.name for value in graph.output))
    sizes = {
        name: math.ceil(reads.part(name) * _size(math.prod(tensor.dims), tensor.data_type))
        for name, tensor in named_constants(graph)
    }

    def stored(name: str) -> int:
        while name not in sizes and name in makers and makers[name].op_type in _CONVERTING:
            name = makers[name].input[0]
        return sizes.get(name, 0)

    counts = [(node, multiply_adds(node, types, padding=False)) for node in graph.node]
    products = tuple(
        Product(
            names=frozenset(_fused_names(node, users)),
            precision=node_precision(node, types, makers),
            operations=2 * count,
            weights=sum(map(stored, node.input)),
        )
        for node, count in counts
        if count
    )
    operations: Counter[str] = Counter()
    for product in products:
        operations[product.precision] += product.operations
    return Work(
        operations=dict(operations.most_common()),
        weights=sum(sizes.values()),
        inputs=sum(_bytes(value, types) for value in inputs_of(graph)),
        outputs=sum(_bytes(value, types) for value in graph.output),
        products=products,
        uncounted=tuple(dict.fromkeys(_title(node) for node, count in counts if count is None)),
    )


@dataclass(frozen=True)
class _Reads:
    """How much of a graph's constants its nodes read.

    Attributes:
        users: The nodes that read a value.
        outputs: The names of the graph's outputs.
    """

    users: Mapping[str, list[onnx.NodeProto]]
    types: Types
    outputs: frozenset[str]

    def part(self, name: str) -> float:
        """Returns the part of a value that its users read at most.

        It is 1 unless all of them only pick some of its elements, as an embedding does, or are
        convolutions of which some weights meet nothing but padding.
        """
        users = self.users.get(name)
        if name in self.outputs or not users:
            return 1.0
        return min(1.0, sum(self._by(node, name) for node in users))

    def _by(self, node: onnx.NodeProto, name: str) -> float:
        places = [place for place, read in enumerate(node.input) if read == name]
        kind = node.op_type
        if kind in _CONVERTING and places == [0]:
            return self.part(node.output[0])
        if kind == "DequantizeLinear" and 0 not in places and self._scales_rows(node, name):
            return self.part(node.output[0])
        if kind in CONVOLUTIONS and places == [CONVOLUTIONS[kind][1]]:
            return weights_met(node, self.types)
        if kind in _PICKING and places == [0] and node.output[0] in self.types:
            elements, picked = (math.prod(self.types[value][1]) for value in (name, node.output[0]))
            return picked / max(1, elements)
        return 1.0

    def _scales_rows(self, node: onnx.NodeProto, name: str) -> bool:
        """Whether a scale or zero point has elements for each row, and only rows are picked."""
        scale, table = (self.types.get(value, ("", ()))[1] for value in (name, node.input[0]))
        by_row = len(scale) == len(table) > 1 or attribute(node, "axis", 1) in (0, -len(table))
        return by_row and scale[:1] == table[:1] and self._only_rows(node.output[0])

    def _only_rows(self, name: str) -> bool:
        return name not in self.outputs and all(
            (node.op_type == "Gather" and attribute(node, "axis", 0) == 0)
            or (node.op_type in _CONVERTING and self._only_rows(node.output[0]))
            for node in self.users.get(name, ())
        )


def _title(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _fused_names(node: onnx.NodeProto, users: Mapping[str, list[onnx.NodeProto]]) -> Iterator[str]:
    """Yields the names of a node, and of those after it that runtimes compute together with it."""
    yield from filter(None, (node.name, *node.output))
    for output in node.output:
        for user in users.get(output, ()):
            if user.op_type in _FUSED:
                yield from _fused_names(user, users)


def _bytes(value: onnx.ValueInfoProto, types: Types) -> int:
    if not value.type.HasField("tensor_type"):
        return 0
    return _size(math.prod(types[value.name][1]), value.type.tensor_type.elem_type)


def _size(count: int, kind: int) -> int:
    """Returns the bytes of so many elements of an ONNX type."""
    if kind in _IN_A_BYTE:
        return math.ceil(count / _IN_A_BYTE[kind])
    return count * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize

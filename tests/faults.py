"""Faults to plant in a graph, such as exporters, converters and people make.

Each returns a changed copy of a graph, or None if the graph has no place for it. `place` selects
one of the possible places.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        plant: Returns a changed copy of a graph and the name of the changed node; None if the graph
            has no place for the fault.
        weight: It changes only a weight, so the audit has to find it.
    """

    name: str
    plant: Callable[[onnx.ModelProto, int], tuple[onnx.ModelProto, str] | None]
    weight: bool = False


FAULTS: list[Fault] = []


def fault(
    name: str, *, weight: bool = False
) -> Callable[[Callable[["EditableGraph"], str | None]], Callable[["EditableGraph"], str | None]]:
    """Registers a function that changes a graph in place and returns the node it changed."""

    def register(
        change: Callable[["EditableGraph"], str | None],
    ) -> Callable[["EditableGraph"], str | None]:
        def plant(model: onnx.ModelProto, place: int) -> tuple[onnx.ModelProto, str] | None:
            copied = onnx.ModelProto()
            copied.CopyFrom(model)
            where = change(EditableGraph(copied, place))
            return None if where is None else (copied, where)

        FAULTS.append(Fault(name, plant, weight))
        return change

    return register


class EditableGraph:
    """A graph to plant a fault in."""

    def __init__(self, model: onnx.ModelProto, place: int) -> None:
        self.graph = model.graph
        self.place = place

    def pick(self, candidates: list) -> object | None:
        """Returns the candidate that `place` selects; None if there are none."""
        return candidates[self.place % len(candidates)] if candidates else None

    def nodes(self, *operators: str) -> list[onnx.NodeProto]:
        return [node for node in self.graph.node if node.op_type in operators]

    def value(self, name: str) -> np.ndarray | None:
        for tensor in self.graph.initializer:
            if tensor.name == name:
                return numpy_helper.to_array(tensor).copy()
        return None

    def put(self, name: str, value: np.ndarray) -> None:
        for tensor in self.graph.initializer:
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(value, name))
                return
        self.graph.initializer.append(numpy_helper.from_array(value, name))

    def weighted(self, part: int = 1) -> list[onnx.NodeProto]:
        """Returns convolutions and products whose weight (1) or bias (2) is an initializer."""
        candidates = self.nodes("Conv", "Gemm")
        return [
            n for n in candidates if len(n.input) > part and self.value(n.input[part]) is not None
        ]

    def change_weight(self, change: Callable[[np.ndarray], None], part: int = 1) -> str | None:
        node = self.pick(self.weighted(part))
        if node is None:
            return None
        value = self.value(node.input[part])
        before = value.copy()
        change(value)
        if np.array_equal(before, value):
            return None
        self.put(node.input[part], value)
        return node.name

    def bypass(self, node: onnx.NodeProto) -> str:
        """Removes a node; its consumers then read its input. Returns the first consumer's name."""
        consumer = ""
        for other in self.graph.node:
            if node.output[0] in other.input:
                consumer = consumer or other.name
                other.input[:] = [
                    node.input[0] if name == node.output[0] else name for name in other.input
                ]
        self.graph.node.remove(node)
        return consumer

    def insert(self, value: str, nodes: list[onnx.NodeProto]) -> str:
        """Inserts nodes after a value: the first reads `VALUE_was`, the last writes the value."""
        index = 0
        for place, node in enumerate(self.graph.node):
            if value in node.output:
                index = place + 1
                node.output[:] = [f"{value}_was" if name == value else name for name in node.output]
        for offset, node in enumerate(nodes):
            self.graph.node.insert(index + offset, node)
        return nodes[-1].name


def attribute(node: onnx.NodeProto, name: str, value: object) -> None:
    kept = [old for old in node.attribute if old.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def ints(node: onnx.NodeProto, name: str, default: list[int]) -> list[int]:
    return next((list(entry.ints) for entry in node.attribute if entry.name == name), default)


def largest(value: np.ndarray) -> int:
    return int(np.abs(value).argmax())


for _size in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6):

    @fault(f"one weight off by {_size:g}", weight=True)
    def _one_weight(graph: EditableGraph, size: float = _size) -> str | None:
        def change(value: np.ndarray) -> None:
            value.ravel()[largest(value)] *= np.float32(1 + size)

        return graph.change_weight(change)


for _type in (np.float16, ml_dtypes.bfloat16):

    @fault(f"weights rounded to {np.dtype(_type).name}", weight=True)
    def _rounded(graph: EditableGraph, kind: type = _type) -> str | None:
        def change(value: np.ndarray) -> None:
            value[:] = value.astype(kind).astype(np.float32)

        return graph.change_weight(change)


@fault("a dropped bias")
def _no_bias(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.weighted(2))
    if node is None:
        return None
    del node.input[2:]
    return node.name


@fault("a bias of another layer's sign", weight=True)
def _negative_bias(graph: EditableGraph) -> str | None:
    return graph.change_weight(lambda value: np.negative(value, out=value), 2)


@fault("a swapped output channel", weight=True)
def _swapped(graph: EditableGraph) -> str | None:
    def change(value: np.ndarray) -> None:
        value[[0, 1]] = value[[1, 0]]

    return graph.change_weight(change)


@fault("a weight read in another layout", weight=True)
def _transposed(graph: EditableGraph) -> str | None:
    def change(value: np.ndarray) -> None:
        value[:] = value.reshape(len(value), -1).T.reshape(value.shape)

    return graph.change_weight(change)


@fault("a scale off by a hundredth", weight=True)
def _scaled(graph: EditableGraph) -> str | None:
    def change(value: np.ndarray) -> None:
        value *= np.float32(1.01)

    return graph.change_weight(change)


@fault("another epsilon of a folded batch norm", weight=True)
def _epsilon(graph: EditableGraph) -> str | None:
    def change(value: np.ndarray) -> None:  # as if 1e-3 had been taken for 1e-5, at variance 0.1
        value *= np.float32(np.sqrt((0.1 + 1e-5) / (0.1 + 1e-3)))

    return graph.change_weight(change)


@fault("a stale checkpoint", weight=True)
def _stale(graph: EditableGraph) -> str | None:
    random = np.random.default_rng(graph.place)
    first = ""
    for node in graph.weighted():
        value = graph.value(node.input[1])
        step = random.normal(size=value.shape).astype(np.float32)
        graph.put(node.input[1], value + step * np.float32(1e-4) * value.std())
        first = first or node.name
    return first or None


@fault("padding on the other side")
def _padding(graph: EditableGraph) -> str | None:
    padded = [n for n in graph.nodes("Conv") if any(ints(n, "pads", []))]
    node = graph.pick(padded)
    if node is None:
        return None
    top, left, bottom, right = ints(node, "pads", [])
    attribute(node, "pads", [top + 1, left, bottom - 1, right])
    return node.name


@fault("another stride")
def _stride(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("Conv"))
    if node is None:
        return None
    attribute(node, "strides", [step + 1 for step in ints(node, "strides", [1, 1])])
    return node.name


@fault("another dilation")
def _dilation(graph: EditableGraph) -> str | None:
    nodes = []
    for node in graph.weighted():
        kernel = graph.value(node.input[1]).shape[2:]
        if node.op_type == "Conv" and len(kernel) == 2 and kernel[0] == kernel[1] > 1:
            nodes.append((node, kernel[0]))
    picked = graph.pick(nodes)
    if picked is None:
        return None
    node, size = picked
    more = (size - 1) // 2
    attribute(node, "dilations", [2, 2])
    attribute(node, "pads", [pad + more for pad in ints(node, "pads", [0, 0, 0, 0])])
    return node.name


@fault("padding counted in an average")
def _counted(graph: EditableGraph) -> str | None:
    padded = [n for n in graph.nodes("AveragePool") if any(ints(n, "pads", []))]
    node = graph.pick(padded)
    if node is None:
        return None
    attribute(node, "count_include_pad", 1)
    return node.name


@fault("a maximum for an average")
def _maximum(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("AveragePool"))
    if node is None:
        return None
    node.op_type = "MaxPool"
    kept = [old for old in node.attribute if old.name != "count_include_pad"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return node.name


@fault("an average for a maximum")
def _average(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("MaxPool"))
    if node is None:
        return None
    node.op_type = "AveragePool"
    kept = [old for old in node.attribute if old.name != "storage_order"]
    del node.attribute[:]
    node.attribute.extend(kept)
    return node.name


@fault("a missing activation")
def _inactive(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("Relu", "Sigmoid"))
    return None if node is None else graph.bypass(node)


@fault("another activation")
def _other_activation(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("Relu", "Sigmoid"))
    if node is None:
        return None
    node.op_type = "HardSigmoid" if node.op_type == "Sigmoid" else "LeakyRelu"
    return node.name


@fault("divided by 256 for 255")
def _divided(graph: EditableGraph) -> str | None:
    for node in graph.nodes("Div"):
        value = graph.value(node.input[1])
        if value is not None and value.ndim == 0 and value == 255:
            graph.put(node.input[1], np.array(256, value.dtype))
            return node.name
    return None


@fault("another interpolation")
def _mode(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("Resize"))
    if node is None:
        return None
    attribute(node, "mode", "nearest")
    return node.name


@fault("other pixel centres")
def _centres(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("Resize"))
    if node is None:
        return None
    attribute(node, "coordinate_transformation_mode", "asymmetric")
    return node.name


@fault("classes off by one")
def _classes(graph: EditableGraph) -> str | None:
    name = graph.graph.output[0].name
    dims = graph.graph.output[0].type.tensor_type.shape.dim
    if len(dims) != 2:
        return None
    order = np.roll(np.arange(dims[1].dim_value), 1)
    graph.put("order", order)
    gather = helper.make_node("Gather", [f"{name}_was", "order"], [name], name="off_by_one", axis=1)
    return graph.insert(name, [gather])


@fault("right at batch 1 alone")
def _batch(graph: EditableGraph) -> str | None:
    """Mixes the mean of the batch into all rows but the first."""
    name = graph.graph.output[0].name
    graph.put("first_axis", np.array([0]))
    graph.put("a_bit", np.array(0.01, np.float32))
    nodes = [
        helper.make_node("ReduceMean", [f"{name}_was", "first_axis"], ["mixed_mean"], keepdims=1),
        helper.make_node("Sub", ["mixed_mean", f"{name}_was"], ["mixed_rest"]),
        helper.make_node("Mul", ["mixed_rest", "a_bit"], ["mixed_part"]),
        helper.make_node("Add", [f"{name}_was", "mixed_part"], [name], name="mixed"),
    ]
    return graph.insert(name, nodes)


@fault("bright pixels clipped")
def _clipped(graph: EditableGraph) -> str | None:
    for node in graph.nodes("Cast"):
        if node.input[0] == graph.graph.input[0].name:
            value = node.output[0]
            graph.put("darkest", np.array(0, np.float32))
            graph.put("brightest", np.array(250, np.float32))
            clip = helper.make_node(
                "Clip", [f"{value}_was", "darkest", "brightest"], [value], name="clip"
            )
            return graph.insert(value, [clip])
    return None


@fault("logits rounded to fp16")
def _half(graph: EditableGraph) -> str | None:
    name = graph.graph.output[0].name
    nodes = [
        helper.make_node("Cast", [f"{name}_was"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], [name], name="to_half", to=TensorProto.FLOAT),
    ]
    return graph.insert(name, nodes)


@fault("a quantization scale off by a twentieth", weight=True)
def _scale(graph: EditableGraph) -> str | None:
    node = graph.pick(graph.nodes("DequantizeLinear"))
    if node is None:
        return None
    graph.put(node.input[1], graph.value(node.input[1]) * np.float32(1.05))
    return node.name

"""Casts an ONNX graph to float16 or bfloat16.

As in the graphs of cast modules, inputs and outputs keep their types, and the casts are inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engines.contract import Array
from engines.errors import DeployError
from exporters import DEFAULT_PRECISION, PRECISIONS, REDUCED
from exporters.half_range import CONSTANT_ERROR
from exporters.onnx_describe import value_types
from exporters.onnx_nodes import graphs_of, inputs_of, named_constants, nodes_of

_KINDS = {
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16)),
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)),
}
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
_HALF, _CAST = "__half", "__half_cast"
# Attributes that name the type of an output.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")
_STANDARD = ("", "ai.onnx")


@dataclasses.dataclass(frozen=True)
class HalfGraph:
    """A graph in a half type.

    Attributes:
        kept: Nodes that compute in float32, by name, and why.
    """

    graph: onnx.ModelProto
    kept: dict[str, str]


def cast(model: onnx.ModelProto, precision: str, beyond: Mapping[str, str]) -> HalfGraph:
    """Casts a float32 graph.

    A node stays in float32 if ONNX does not define it in the half type, or if the type cannot hold
    its constants or what it gives.

    Args:
        model: A valid graph without subgraphs or functions.
        precision: "fp16" or "bf16".
        beyond: Values that the type cannot hold, by name, and what happens, in words.

    Raises:
        DeployError: The graph has subgraphs or functions, or a type in it is not known.
    """
    nested = [n for n in model.graph.node for entry in n.attribute if entry.HasField("g")]
    if nested or model.functions:
        what = f"a subgraph in {nested[0].op_type} {nested[0].name}" if nested else "functions"
        raise DeployError(
            f"a graph with {what} cannot be cast to {precision}",
            "export it in fp32, or give a graph without branches and loops",
        )
    return _Caster(model, precision, beyond).cast()


def precision_of(model: onnx.ModelProto) -> str:
    """Returns the precision of a graph: that of a half type if it computes with such constants.

    Constants that are stored in a half type, and only cast, are not computed with.
    """
    stored: dict[str, int] = {}
    for graph in graphs_of(model.graph):
        stored |= {name: tensor.data_type for name, tensor in named_constants(graph)}
    read = {
        stored.get(name)
        for node in nodes_of(model.graph)
        if node.op_type != "Cast"
        for name in node.input
    }
    for precision in REDUCED:
        if _KINDS[PRECISIONS[precision].dtype][0] in read:
            return precision
    return DEFAULT_PRECISION


def opset_of(model: onnx.ModelProto) -> int:
    """Returns the version of the standard domain."""
    return int(next(entry.version for entry in model.opset_import if entry.domain in _STANDARD))


def at_opset(model: onnx.ModelProto, least: int) -> onnx.ModelProto:
    """Returns a graph at an opset, or as it is if its own is as late.

    Raises:
        DeployError: ONNX cannot convert it.
    """
    if opset_of(model) >= least:
        return model
    try:
        return onnx.version_converter.convert_version(model, least)
    except Exception as error:  # its errors share no type
        raise DeployError(
            f"the graph has opset {opset_of(model)}, {least} is needed, and ONNX cannot convert"
            f" it: {' '.join(str(error).split())[:300]}",
            f"export it with opset {least} or later",
        ) from error


def originals(half: onnx.ModelProto, values: Mapping[str, str]) -> dict[str, str]:
    """Returns values of the original graph to leave in float32, for those of a graph that was cast.

    A value that was cast to the half type is left to the nodes that read it.

    Args:
        half: What `cast` returned.
        values: By the name of a value in `half`, why its type cannot hold it.
    """
    named = {}
    for name, why in values.items():
        if not name.endswith(_CAST):
            named[name.removesuffix(_HALF)] = why
            continue
        for node in half.graph.node:
            if name in node.input:
                named |= {output.removesuffix(_HALF): f"reads what {why}" for output in node.output}
    return named


def _read_data(graph: onnx.GraphProto) -> set[str]:
    """Returns the values that depend on the numbers in the inputs, not on their sizes alone."""
    data = {value.name for value in inputs_of(graph)}
    for node in graph.node:
        if node.op_type not in ("Shape", "Size") and data.intersection(node.input):
            data.update(node.output)
    return data


class _Caster:
    def __init__(self, model: onnx.ModelProto, precision: str, beyond: Mapping[str, str]) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._precision, self._beyond = precision, beyond
        self._kind, self._dtype = _KINDS[PRECISIONS[precision].dtype]
        self._opset = opset_of(model)
        self._types = {name: dtype for name, (dtype, _) in value_types(model).items()}
        self._constants = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._data = _read_data(self._model.graph)
        self._half: set[str] = set()  # values that nodes give in the half type
        self._casts: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._kept: dict[str, str] = {}

    def cast(self) -> HalfGraph:
        graph = self._model.graph
        outputs = {value.name for value in graph.output}
        renamed: dict[str, str] = {}
        for node in list(graph.node):
            if node.op_type == "Constant" and self._as_initializer(node):
                continue
            takes, gives = self._half_arguments(node)
            why = self._why_float(node, takes, gives)
            half = bool(takes or gives) and not why
            if why and gives and node.op_type != "Cast":
                self._kept[node.name or node.output[0]] = why
            for index, name in enumerate(node.input):
                wide = renamed.get(name, name)
                if half and index in takes:
                    node.input[index] = self._as(wide, self._kind)
                elif name in self._half:
                    node.input[index] = self._as(wide, TensorProto.FLOAT)
            self._nodes.append(node)
            if not half:
                continue
            self._set_types(node)
            for index in gives:
                name = node.output[index]
                self._half.add(name)
                if name in outputs:
                    renamed[name] = node.output[index] = f"{name}{_HALF}"
                    self._half.add(renamed[name])
        for name, narrow in renamed.items():
            self._nodes.append(_cast_node(narrow, name, TensorProto.FLOAT))
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self._nodes)
        read = {name for node in self._nodes for name in node.input} | outputs
        unread = [tensor for tensor in graph.initializer if tensor.name not in read]
        for tensor in unread:
            graph.initializer.remove(tensor)
        return HalfGraph(self._model, self._kept)

    def _as_initializer(self, node: onnx.NodeProto) -> bool:
        """Turns a Constant into an initializer; returns whether it did."""
        values = [entry.t for entry in node.attribute if entry.name == "value"]
        if not values or not values[0].data_type:
            return False
        tensor = self._model.graph.initializer.add()
        tensor.CopyFrom(values[0])
        tensor.name = node.output[0]
        self._constants[tensor.name] = tensor
        return True

    def _half_arguments(self, node: onnx.NodeProto) -> tuple[set[int], set[int]]:
        """Returns which inputs and outputs are float32 and may be of the half type."""
        if node.domain not in _STANDARD:
            return set(), set()
        try:
            schema = onnx.defs.get_schema(node.op_type, self._opset, "")
        except onnx.defs.SchemaError:
            return set(), set()
        allowed = {
            constraint.type_param_str: {*constraint.allowed_type_strs}
            for constraint in schema.type_constraints
        }
        wanted = f"tensor({PRECISIONS[self._precision].dtype})"

        def halves(names: Collection[str], formal: Collection[object]) -> set[int]:
            parameters = [*formal]
            chosen = set()
            for index, name in enumerate(names):
                parameter = parameters[min(index, len(parameters) - 1)]
                kinds = allowed.get(parameter.type_str, {parameter.type_str})  # type: ignore[attr-defined]
                if name and self._types.get(name) == "float32" and wanted in kinds:
                    chosen.add(index)
            return chosen

        return halves(node.input, schema.inputs), halves(node.output, schema.outputs)

    def _why_float(self, node: onnx.NodeProto, takes: set[int], gives: set[int]) -> str:
        """Returns why a node computes in float32; "" if it is cast."""
        for name in node.output:
            if name in self._beyond:
                return self._beyond[name]
        if not self._data.intersection(node.output):
            # Such as the centres of a detector's cells. TensorRT computes them in float32 anyway.
            return "is computed from sizes alone"
        if any(
            self._types.get(name) == "float32" and index not in gives
            for index, name in enumerate(node.output)
        ):
            return f"is not defined in {self._precision} by ONNX"
        for index in takes:
            tensor = self._constants.get(node.input[index])
            if tensor is not None and (lost := self._lost(numpy_helper.to_array(tensor))):
                return f"has a constant of {lost:.3g}"
        return ""

    def _lost(self, array: Array) -> float:
        """Returns a number that the half type cannot hold; 0 if there are none.

        Single weights that vanish among others do not matter.
        """
        finite = array[np.isfinite(array) & (array != 0)].astype(np.float64)
        with np.errstate(all="ignore"):
            narrow = finite.astype(self._dtype).astype(np.float64)
        lost = finite[~np.isfinite(narrow)]
        if not lost.size and finite.size and np.abs(narrow).max() == 0:
            lost = finite
        if not lost.size and finite.size == 1 and abs(narrow[0] / finite[0] - 1) > CONSTANT_ERROR:
            lost = finite
        return float(lost[0]) if lost.size else 0.0

    def _as(self, name: str, kind: int) -> str:
        """Returns a value in a type: itself, a constant, or a new cast of it."""
        is_half = name in self._half
        if is_half == (kind == self._kind):
            return name
        if (name, kind) not in self._casts:
            narrow = f"{name}{_CAST if kind == self._kind else '__float_cast'}"
            tensor = self._constants.get(name)
            if tensor is not None:
                array = numpy_helper.to_array(tensor).astype(self._dtype)
                self._model.graph.initializer.append(numpy_helper.from_array(array, narrow))
            else:
                self._nodes.append(_cast_node(name, narrow, kind))
            self._casts[name, kind] = narrow
        return self._casts[name, kind]

    def _set_types(self, node: onnx.NodeProto) -> None:
        for entry in node.attribute:
            if entry.name in _TYPE_ATTRIBUTES and entry.i == TensorProto.FLOAT:
                entry.i = self._kind
            if entry.name == "value" and entry.t.data_type == TensorProto.FLOAT:
                array = numpy_helper.to_array(entry.t).astype(self._dtype)
                entry.t.CopyFrom(numpy_helper.from_array(array, entry.t.name))


def _cast_node(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=kind, name=f"{target}_node")

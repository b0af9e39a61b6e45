"""Makes the sizes in a graph constants, where the batch is the only axis of unknown size.

An exporter computes sizes in the graph: it takes apart the shape of one tensor and puts together
that of another. GPU backends leave these nodes to the CPU, or refuse the graph for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters import onnx_files
from exporters.onnx_nodes import attribute, remove_unread_constants

_SIZES = 3  # index of Resize's input `sizes`; `scales` is the one before it
# Types that backends cast to bool. TensorRT casts uint8 to floats only.
_CAST = {
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16),
    *(TensorProto.INT32, TensorProto.INT64),
}
# The size of each axis; an unknown one is a symbol.
_Shape = tuple[int | str, ...]


def make_sizes_constant(model: onnx.ModelProto) -> None:
    """Makes the sizes that Resize, Reshape, Expand and ConstantOfShape read constants, in place.

    Sizes stay computed if two axes are unknown.
    """
    if not any(node.op_type == "Shape" for node in model.graph.node):
        return
    if onnx_files.size(model) > onnx_files.LIMIT:
        return  # too large for shape inference
    editor = _Editor(model)
    for node in list(model.graph.node):
        if node.op_type == "Resize" and len(node.input) > _SIZES:
            editor.resize(node)
        elif node.op_type == "Reshape":
            editor.reshape(node)
        elif node.op_type in ("Expand", "ConstantOfShape"):
            editor.expand(node)
    _remove_unread(model.graph)


class _Editor:
    """Edits the nodes of a graph by what shape inference knows of it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._graph = model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in model.graph.node for name in node.output}
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._shapes: dict[str, _Shape] = {}
        self._types: dict[str, int] = {}
        for value in (*inferred.input, *inferred.value_info, *inferred.output):
            kind = value.type.tensor_type
            self._types[value.name] = kind.elem_type
            if kind.HasField("shape"):
                # An axis without a symbol equals no other one.
                self._shapes[value.name] = tuple(
                    axis.dim_value if axis.HasField("dim_value") else axis.dim_param or f"{i}?"
                    for i, axis in enumerate(kind.shape.dim)
                )
        self._shapes |= {name: tuple(t.dims) for name, t in self._constants.items()}
        # By a size, a number of axes, and the axis that has the size; see `_condition`.
        self._conditions: dict[tuple[int | str, int, int], str] = {}

    def resize(self, node: onnx.NodeProto) -> None:
        """Gives a Resize its scales instead of its sizes.

        The exporter takes the batch and channels from the shape of a tensor, and adds the height
        and width. A scale of 1 keeps batch and channels. (Naming the resized axes would, too, but
        TensorRT does not accept that with a dynamic batch.)
        """
        concat = self._makers.get(node.input[_SIZES])
        if concat is None or concat.op_type != "Concat" or len(concat.input) != 2:  # noqa: PLR2004
            return
        shape, tail = self._makers.get(concat.input[0]), self._constants.get(concat.input[1])
        before = self._shapes.get(node.input[0], ())
        if shape is None or shape.op_type != "Shape" or tail is None:
            return
        start, end = attribute(shape, "start", 0), attribute(shape, "end", None)
        sizes = (
            *self._shapes.get(shape.input[0], ())[start:end],
            *numpy_helper.to_array(tail).tolist(),
        )
        if len(sizes) != len(before):
            return
        scales = [_scale(old, new) for old, new in zip(before, sizes, strict=True)]
        if not all(scales):
            return
        node.input[_SIZES - 1] = self._constant(f"{node.output[0]}_scales", scales, np.float32)
        del node.input[_SIZES:]
        # The policy for aspect ratios is valid only with `sizes`.
        keep = [entry for entry in node.attribute if entry.name != "keep_aspect_ratio_policy"]
        del node.attribute[:]
        node.attribute.extend(keep)

    def reshape(self, node: onnx.NodeProto) -> None:
        """Gives a Reshape a constant shape, in which -1 is the unknown axis."""
        shape = self._shapes.get(node.output[0])
        if node.input[1] in self._constants or shape is None or 0 in shape:
            return
        if sum(isinstance(size, str) for size in shape) <= 1:
            sizes = [-1 if isinstance(size, str) else size for size in shape]
            node.input[1] = self._constant(f"{node.output[0]}_shape", sizes)

    def expand(self, node: onnx.NodeProto) -> None:
        """Gives an Expand or ConstantOfShape a constant shape.

        A constant that it repeats for each row of the batch is selected instead from twice that
        constant, by a condition of the batch's size: the values are the same.
        """
        shape, old = self._shapes.get(node.output[0]), self._shapes.get(node.input[0])
        if node.input[-1] in self._constants or shape is None or old is None or 0 in shape:
            return
        if node.op_type == "ConstantOfShape":
            old = ()
        old = (1,) * (len(shape) - len(old)) + old
        symbols = [axis for axis, size in enumerate(shape) if isinstance(size, str)]
        added = [axis for axis in symbols if old[axis] != shape[axis]]
        if len(added) > 1:
            return
        condition = self._condition(shape, added[0], node) if added else ""
        if added and not condition:
            return
        name = node.output[0]
        # A size of 1 leaves the axis as it is.
        sizes = [1 if isinstance(size, str) else size for size in shape]
        repeated = node.input[0] if node.op_type == "Expand" else self._filling(node)
        if any(size != before for size, before in zip(sizes, old, strict=True) if size != 1):
            wide = self._constant(f"{name}_shape", sizes)
            repeated = self._insert(node, "Expand", [repeated, wide], f"{name}_one")
        # In its place, with its name.
        kind, inputs = (
            ("Where", [condition, repeated, repeated]) if added else ("Identity", [repeated])
        )
        node.CopyFrom(helper.make_node(kind, inputs, [name], name=node.name))

    def _filling(self, node: onnx.NodeProto) -> str:
        """Returns the constant that a ConstantOfShape repeats."""
        value = attribute(node, "value")
        array = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
        return self._constant(f"{node.output[0]}_value", array)

    def _condition(self, shape: _Shape, axis: int, before: onnx.NodeProto) -> str:
        """Returns a tensor of truth values, `[1, …, batch, …, 1]`; "" if that is not possible.

        Args:
            shape: Its number of axes, and the size of the batch, are those of this shape.
            axis: The batch's.
            before: The node that reads the tensor.
        """
        batch, axes = shape[axis], len(shape)
        if (batch, axes, axis) in self._conditions:
            return self._conditions[batch, axes, axis]
        source = self._source(batch, before)
        if not source:
            return ""
        name = f"rows_{axis}_of_{axes}"
        inner = len(self._shapes[source]) - 1
        first = source
        if inner:
            bounds = [
                self._constant(f"{name}_{part}", values)
                for part, values in (
                    ("starts", [0] * inner),
                    ("ends", [1] * inner),
                    ("axes", range(1, 1 + inner)),
                )
            ]
            first = self._insert(before, "Slice", [source, *bounds], f"{name}_first")
        column = self._constant(f"{name}_shape", [-1 if i == axis else 1 for i in range(axes)])
        first = self._insert(before, "Reshape", [first, column], f"{name}_column")
        self._conditions[batch, axes, axis] = self._insert(
            before, "Cast", [first], name, to=TensorProto.BOOL
        )
        return name

    def _source(self, batch: int | str, before: onnx.NodeProto) -> str:
        """Returns the first tensor of which the batch is the only unknown axis; "" if none."""
        names: list[str] = [value.name for value in self._graph.input]
        for node in self._graph.node:
            if node is before:
                break
            names += node.output
        for name in names:
            first, *others = self._shapes.get(name) or ("",)
            fixed = all(isinstance(size, int) and size for size in others)
            if first == batch and fixed and self._types.get(name) in _CAST:
                return name
        return ""

    def _insert(
        self, before: onnx.NodeProto, operator: str, inputs: Sequence[str], name: str, **more: Any
    ) -> str:
        """Inserts a node before another one, and returns the name of its output."""
        place = next(i for i, node in enumerate(self._graph.node) if node is before)
        self._graph.node.insert(
            place, helper.make_node(operator, inputs, [name], name=f"node_{name}", **more)
        )
        return name

    def _constant(self, name: str, values: Any, dtype: Any = np.int64) -> str:
        """Adds a constant, and returns its name."""
        array = values if isinstance(values, np.ndarray) else np.array(list(values), dtype)
        self._constants[name] = numpy_helper.from_array(array, name)
        self._graph.initializer.append(self._constants[name])
        return name


def _scale(side: int | str, size: int | str) -> float:
    """Returns the float32 scale that resizes `side` to `size`; 0 if there is none.

    By the ONNX specification the size is floor(side * scale). Runtimes compute the product in
    float32, so the scale has to give the size in exact arithmetic and in float32.
    """
    if side == size:
        return 1.0
    if not (isinstance(side, int) and isinstance(size, int) and side):
        return 0.0
    scale = np.float32(size / side)
    for candidate in (scale, np.nextafter(scale, np.float32(np.inf))):
        if int(np.float32(side) * candidate) == size and int(side * float(candidate)) == size:
            return float(candidate)
    return 0.0


def _remove_unread(graph: onnx.GraphProto) -> None:
    """Removes nodes and constants whose values nothing reads."""
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {value.name for value in graph.output}
        unread = [node for node in graph.node if not read & set(node.output)]
        if not unread:
            break
        for node in unread:
            graph.node.remove(node)
    remove_unread_constants(graph)

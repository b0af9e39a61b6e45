"""Rewrites Resize to take constant scales instead of a size computed in the graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from exporters import onnx_files
from exporters.onnx_nodes import attribute, remove_unread_constants

_SIZES = 3  # index of Resize's input `sizes`; `scales` is the one before it


def resize_by_constants(model: onnx.ModelProto) -> None:
    """Gives every Resize to a constant size its scales as a constant, in place.

    The exporter computes the size with Shape and Concat: the input's own batch and channels,
    followed by the new height and width. GPU backends leave these two nodes to the CPU, although
    they only keep the batch and channels unchanged. A scale of 1 does the same. (Naming the
    resized axes would, too, but TensorRT does not accept that with a dynamic batch.)
    """
    graph = model.graph
    resizes = [node for node in graph.node if node.op_type == "Resize" and len(node.input) > _SIZES]
    if not resizes or onnx_files.size(model) > onnx_files.LIMIT:
        return  # too large for shape inference
    makers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shapes = _static_shapes(model)
    for node in resizes:
        concat = makers.get(node.input[_SIZES])
        if concat is None or concat.op_type != "Concat" or len(concat.input) != 2:  # noqa: PLR2004
            continue
        shape, tail = makers.get(concat.input[0]), constants.get(concat.input[1])
        if shape is None or tail is None or not _is_shape_prefix(shape, node.input[0]):
            continue
        sizes = numpy_helper.to_array(tail)
        sides = shapes.get(node.input[0], ())[-len(sizes) :]
        kept = len(shapes.get(node.input[0], ())) - len(sizes)
        if kept != attribute(shape, "end") or not all(sides):
            continue
        scales = [_scale(side, int(size)) for side, size in zip(sides, sizes, strict=True)]
        if not all(scales):
            continue
        name = f"{node.output[0]}_scales"
        values = np.array([1.0] * kept + scales, np.float32)
        graph.initializer.append(numpy_helper.from_array(values, name))
        node.input[_SIZES - 1] = name
        del node.input[_SIZES:]
        # The policy for aspect ratios is valid only with `sizes`.
        keep = [entry for entry in node.attribute if entry.name != "keep_aspect_ratio_policy"]
        del node.attribute[:]
        node.attribute.extend(keep)
    _remove_unused(graph)


def _is_shape_prefix(shape: onnx.NodeProto, name: str) -> bool:
    """Whether a node gives the first axes of a tensor's shape."""
    from_first = attribute(shape, "start", 0) == 0
    return shape.op_type == "Shape" and shape.input[0] == name and from_first


def _scale(side: int, size: int) -> float:
    """Returns the float32 scale that resizes `side` to `size`; 0 if there is none.

    By the ONNX specification the size is floor(side * scale). Runtimes compute the product in
    float32, so the scale has to give the size in exact arithmetic and in float32.
    """
    scale = np.float32(size / side)
    for candidate in (scale, np.nextafter(scale, np.float32(np.inf))):
        if int(np.float32(side) * candidate) == size and int(side * float(candidate)) == size:
            return float(candidate)
    return 0.0


def _static_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of tensors by name; an axis of unknown size is 0."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
        for value in (*inferred.input, *inferred.value_info)
    }


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Removes Shape and Concat nodes and constants whose values nothing reads."""
    while True:
        read = {name for node in graph.node for name in node.input}
        read |= {value.name for value in graph.output}
        unused = [
            node
            for node in graph.node
            if node.op_type in ("Shape", "Concat") and not read & set(node.output)
        ]
        if not unused:
            break
        for node in unused:
            graph.node.remove(node)
    remove_unread_constants(graph)

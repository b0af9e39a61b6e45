"""Operators that ONNX's reference implementation computes otherwise than ONNX defines them.

Some it has not in the older versions that graphs have, and some fail on arguments that are allowed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from onnx import helper
from onnx.reference.op_run import OpRun
from onnx.reference.ops import (
    op_grid_sample,
    op_non_max_suppression,
    op_one_hot,
    op_roi_align,
    op_scatter_elements,
)
from torch.nn import functional

from engines.contract import Array

_PLANE_AXES, _VOLUME_AXES = 4, 5


def opset(operator: OpRun) -> int:
    """Returns the version of the standard domain in which an operator is."""
    versions = operator.run_params["opsets"]
    return int(versions.get("", versions.get("ai.onnx", 1)))


def _attribute(operator: OpRun, name: str, default: Any) -> Any:
    """Returns an attribute that the node has; defaults have changed between versions."""
    for entry in operator.onnx_node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


class _AlongAxis(OpRun):
    """Up to opset 12, all axes from `axis` on are one."""

    op_domain = ""

    def _run(self, x: Array, **_options: Any) -> Any:
        flat = opset(self) < 13  # noqa: PLR2004
        axis = _attribute(self, "axis", 1 if flat else -1)
        if not flat:
            return (self.along(x, axis),)
        rows = math.prod(x.shape[: axis % x.ndim if axis != x.ndim else axis])
        return (self.along(x.reshape(rows, -1), 1).reshape(x.shape),)

    def along(self, x: Array, axis: int) -> Array:
        """Returns the result along an axis."""
        raise NotImplementedError


class Softmax(_AlongAxis):
    """Exponentials, as parts of their sum."""

    def along(self, x: Array, axis: int) -> Array:
        """See `_AlongAxis.along`."""
        exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
        result: Array = exponentials / exponentials.sum(axis=axis, keepdims=True)
        return result


class LogSoftmax(_AlongAxis):
    """The logarithm of Softmax."""

    def along(self, x: Array, axis: int) -> Array:
        """See `_AlongAxis.along`."""
        less = x - x.max(axis=axis, keepdims=True)
        result: Array = less - np.log(np.exp(less).sum(axis=axis, keepdims=True))
        return result


class Hardmax(_AlongAxis):
    """1 at the first of the largest values, 0 elsewhere."""

    def along(self, x: Array, axis: int) -> Array:
        """See `_AlongAxis.along`."""
        result = np.zeros_like(x)
        np.put_along_axis(result, np.expand_dims(x.argmax(axis=axis), axis), 1, axis=axis)
        return result


class LRN(OpRun):
    """The reference implementation takes the batch for the channels."""

    op_domain = ""

    def _run(self, x: Array, **options: Any) -> Any:
        size, channels = options["size"], x.shape[1]
        before, after = (size - 1) // 2, size // 2 + 1
        squares = np.stack(
            [
                np.square(x[:, max(0, c - before) : min(channels, c + after)]).sum(axis=1)
                for c in range(channels)
            ],
            axis=1,
        )
        scale = (options["bias"] + options["alpha"] / size * squares) ** options["beta"]
        return ((x / scale).astype(x.dtype),)


class LpNormalization(OpRun):
    """The reference implementation adds numbers of both signs up if p is 1."""

    op_domain = ""

    def _run(self, x: Array, **options: Any) -> Any:
        axis, p = options.get("axis", -1), options.get("p", 2)
        length = np.linalg.norm(x, ord=p, axis=axis, keepdims=True)
        return (np.where(length == 0, 0, x / length).astype(x.dtype),)


class DequantizeLinear(OpRun):
    """The reference implementation has none of opset 10 to 18, and computes in float32."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, **options: Any) -> Any:
        axis, block = options.get("axis", 1), options.get("block_size") or 0
        kind = options.get("output_dtype")
        dtype = helper.tensor_dtype_to_np_dtype(kind) if kind else scale.dtype
        if scale.dtype == np.float64:
            dtype = scale.dtype
        wide = np.promote_types(dtype, np.float64) if x.dtype.itemsize > 2 else dtype  # noqa: PLR2004

        def spread(part: Array) -> Array:
            if block:
                return np.repeat(part, block, axis)[tuple(slice(None, size) for size in x.shape)]
            if part.size == 1:
                return part.reshape(())
            shape = [1] * x.ndim
            shape[axis] = -1
            return part.reshape(shape)

        less = x.astype(wide)
        if zero is not None:
            less = less - spread(zero.astype(wide))
        return ((less * spread(scale).astype(wide)).astype(dtype),)


class GridSample(op_grid_sample.GridSample):
    """Samples at places of a grid, whose modes had other names up to opset 19."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, grid = inputs
        names = {"linear": "bilinear", "cubic": "bicubic"}
        mode = _attribute(self, "mode", b"linear").decode()
        mode = names.get(mode, mode)
        if x.ndim not in (_PLANE_AXES, _VOLUME_AXES) or (
            x.ndim == _VOLUME_AXES and mode == "bicubic"
        ):
            return super()._run(x, grid, **options)  # type: ignore[no-untyped-call]
        result = functional.grid_sample(
            torch.from_numpy(np.array(x)),
            torch.from_numpy(np.array(grid, x.dtype)),
            mode=mode,
            padding_mode=options["padding_mode"],
            align_corners=bool(options.get("align_corners")),
        )
        return (result.numpy(),)


class RoiAlign(op_roi_align.RoiAlign):
    """Up to opset 15, the places are not moved by half an element."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        if opset(self) < 16:  # noqa: PLR2004
            options["coordinate_transformation_mode"] = "output_half_pixel"
        return super()._run(*inputs, **options)  # type: ignore[no-untyped-call]


class NonMaxSuppression(op_non_max_suppression.NonMaxSuppression):
    """The reference implementation takes limits as vectors alone, and none may be left out."""

    op_domain = ""

    def _run(self, boxes: Array, scores: Array, *limits: Any, **options: Any) -> Any:
        dtypes = (np.int64, np.float32, np.float32)
        vectors = [
            limit if limit is None else np.asarray(limit, dtype).reshape(-1)
            for limit, dtype in zip(limits, dtypes, strict=False)
        ]
        if not vectors or vectors[0] is None:
            return (np.zeros((0, 3), np.int64),)  # the usual number of boxes is 0
        return super()._run(boxes, scores, *vectors, **options)  # type: ignore[no-untyped-call]


class OneHot(op_one_hot.OneHot):
    """The reference implementation takes the depth as a scalar alone."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        indices, depth, values = inputs
        scalar = np.asarray(depth).reshape(-1)[0]
        return super()._run(indices, scalar, values, **options)  # type: ignore[no-untyped-call]


class Pad(OpRun):
    """Adds to each axis, or takes away where a number is negative."""

    op_domain = ""

    def _run(self, x: Array, *inputs: Any, **options: Any) -> Any:
        if opset(self) < 11:  # noqa: PLR2004
            pads, axes = options.get("pads") or _attribute(self, "paddings", []), None
            value = _attribute(self, "value", 0.0)
        else:
            pads, value, axes = (*inputs, None, None)[:3]
        mode = options["mode"]
        places = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        sides = [(0, 0)] * x.ndim
        for number, axis in enumerate(places):
            sides[axis] = int(pads[number]), int(pads[len(places) + number])
        cut = tuple(
            slice(max(0, -low), size - max(0, -high))
            for (low, high), size in zip(sides, x.shape, strict=True)
        )
        added = [(max(0, low), max(0, high)) for low, high in sides]
        filled = {}
        if mode == "constant":
            filled["constant_values"] = 0 if value is None else np.asarray(value).reshape(-1)[0]
        return (np.pad(x[cut], added, mode=mode, **filled),)


class Scatter(op_scatter_elements.ScatterElements):
    """The name of ScatterElements up to opset 10."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, indices, updates = inputs
        axis = options.get("axis") or 0
        return super()._run(x, indices, updates, axis=axis)  # type: ignore[no-untyped-call]


class GlobalLpPool(OpRun):
    """The p-norm of each channel; the reference implementation does not have it."""

    op_domain = ""

    def _run(self, x: Array, **options: Any) -> Any:
        p = options.get("p") or 2
        powers = (np.abs(x) ** p).sum(axis=tuple(range(2, x.ndim)), keepdims=True)
        return ((powers ** (1 / p)).astype(x.dtype),)


KERNELS: list[type[OpRun]] = [
    *(Softmax, LogSoftmax, Hardmax, LRN, LpNormalization, DequantizeLinear, GridSample, RoiAlign),
    *(NonMaxSuppression, OneHot, Pad, Scatter, GlobalLpPool),
]

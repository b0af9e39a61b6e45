"""Operators that are loops in ONNX's reference implementation, computed by PyTorch and numpy.

Each derives from the reference implementation, which computes what is not handled here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_average_pool, op_conv, op_conv_transpose, op_max_pool, op_resize
from torch.nn import functional

from engines.contract import Array

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)
_MAX = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)
_AXES = len(_CONVOLUTIONS)


def _tensor(array: Array) -> torch.Tensor:
    # Constants may be read-only, of which PyTorch warns.
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class _Window:
    """The windows of a convolution or pooling.

    Attributes:
        pads: What is added before and after each axis, by ONNX's definition of `auto_pad`.
    """

    def __init__(
        self, kernel: Sequence[int], sizes: Sequence[int], options: Mapping[str, Any]
    ) -> None:
        self.kernel = tuple(kernel)
        self.strides = tuple(options.get("strides") or [1] * len(kernel))
        self.dilations = tuple(options.get("dilations") or [1] * len(kernel))
        kind, pads = options.get("auto_pad"), options.get("pads")
        self.pads = [(0, 0)] * len(kernel)
        if kind in ("SAME_UPPER", "SAME_LOWER"):
            for axis, size in enumerate(sizes):
                covered = (self.kernel[axis] - 1) * self.dilations[axis] + 1
                steps = math.ceil(size / self.strides[axis]) - 1
                total = max(0, steps * self.strides[axis] + covered - size)
                small, large = total // 2, total - total // 2
                self.pads[axis] = (small, large) if kind == "SAME_UPPER" else (large, small)
        elif kind != "VALID" and pads:
            self.pads = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))


def _padded(array: Array, pairs: Sequence[tuple[int, int]], value: float = 0.0) -> torch.Tensor:
    flat = [side for pair in reversed(pairs) for side in pair]
    tensor = _tensor(array)
    return functional.pad(tensor, flat, value=value) if any(flat) else tensor


class Conv(op_conv.Conv):
    """A convolution of one to three axes."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, weight, bias = (*inputs, None)[:3]
        axes = x.ndim - 2
        if not 1 <= axes <= _AXES:
            return super()._run(*inputs, **options)  # type: ignore[no-untyped-call]
        window = _Window(weight.shape[2:], x.shape[2:], options)
        result = _CONVOLUTIONS[axes - 1](
            _padded(x, window.pads),
            _tensor(weight),
            None if bias is None else _tensor(bias),
            stride=window.strides,
            dilation=window.dilations,
            groups=options.get("group") or 1,
        )
        return (result.numpy(),)


class ConvTranspose(op_conv_transpose.ConvTranspose):
    """A transposed convolution of one to three axes, padded explicitly and symmetrically."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, weight, bias = (*inputs, None)[:3]
        axes = x.ndim - 2
        pads = options.get("pads") or [0] * 2 * axes
        if (
            not 1 <= axes <= _AXES
            or options.get("auto_pad") not in (None, "NOTSET")
            or options.get("output_shape")
            or list(pads[:axes]) != list(pads[axes:])
        ):
            return super()._run(*inputs, **options)  # type: ignore[no-untyped-call]
        window = _Window(weight.shape[2:], x.shape[2:], options)
        result = _TRANSPOSED[axes - 1](
            _tensor(x),
            _tensor(weight),
            None if bias is None else _tensor(bias),
            stride=window.strides,
            padding=tuple(pads[:axes]),
            output_padding=tuple(options.get("output_padding") or [0] * axes),
            groups=options.get("group") or 1,
            dilation=window.dilations,
        )
        return (result.numpy(),)


class MaxPool(op_max_pool.MaxPool):
    """The largest values, where their places are not asked for."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        (x,) = inputs
        axes = x.ndim - 2
        if (
            len(self.output) > 1
            or options.get("ceil_mode")
            or not 1 <= axes <= _AXES
            or x.dtype.kind != "f"
        ):
            return super()._run(x, **options)  # type: ignore[no-untyped-call]
        window = _Window(options["kernel_shape"], x.shape[2:], options)
        result = _MAX[axes - 1](
            _padded(x, window.pads, -math.inf),
            window.kernel,
            stride=window.strides,
            dilation=window.dilations,
        )
        return (result.numpy(),)


class AveragePool(op_average_pool.AveragePool_19):
    """Means over windows that are not padded, or whose padding counts."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        (x,) = inputs
        axes = x.ndim - 2
        window = _Window(options["kernel_shape"], x.shape[2:], options)
        if (
            not 1 <= axes <= _AXES
            or options.get("ceil_mode")
            or any(step != 1 for step in window.dilations)
            or (any(map(any, window.pads)) and not options.get("count_include_pad"))
        ):
            return super()._run(x, **options)  # type: ignore[no-untyped-call]
        result = _AVERAGE[axes - 1](_padded(x, window.pads), window.kernel, stride=window.strides)
        return (result.numpy(),)


class Resize(op_resize.Resize):
    """Nearest and linear resizing, axis by axis."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, _, scales, sizes = (*inputs, None, None, None)[:4]
        mode, place = options["mode"], options["coordinate_transformation_mode"]
        axes = options.get("axes")
        simple = (
            mode in ("nearest", "linear")
            and place in ("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel")
            and options.get("keep_aspect_ratio_policy", "stretch") == "stretch"
            and not options.get("antialias")
            and (mode == "linear" or options.get("nearest_mode") in _ROUNDINGS)
        )
        if not simple:
            return super()._run(*inputs, **options)
        axes = [*range(x.ndim)] if axes is None else [axis % x.ndim for axis in axes]
        result = x
        asked = sizes if scales is None or not len(scales) else scales
        for axis, value in zip(axes, asked, strict=True):
            side = x.shape[axis]
            by_size = asked is sizes
            size = int(value) if by_size else int(np.floor(side * float(value)))
            scale = size / side if by_size else float(value)
            if size == side and scale == 1.0:
                continue
            # Runtimes find the nearest element in float32, where 3 / 0.6 is 5.
            kind = np.float32 if mode == "nearest" else np.float64
            at = _places(place, np.arange(size, dtype=kind), kind(scale), side)
            if mode == "nearest":
                index = _ROUNDINGS[options["nearest_mode"]](at).clip(0, side - 1).astype(np.int64)
                result = result.take(index, axis)
                continue
            at = at.clip(0, side - 1)
            low = np.floor(at).astype(np.int64)
            high = np.minimum(low + 1, side - 1)
            shape = [1] * x.ndim
            shape[axis] = size
            part = (at - low).reshape(shape).astype(x.dtype)
            result = result.take(low, axis) * (1 - part) + result.take(high, axis) * part
        return (np.ascontiguousarray(result),)


_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _places(mode: str, index: Array, scale: np.floating[Any], side: int) -> Array:
    """Returns the place in the input of each element of the output, as ONNX defines them."""
    if mode == "align_corners":
        length = side * scale  # which need not be a whole number
        if len(index) == 1:
            return np.zeros(1)
        along: Array = index * ((side - 1) / (length - 1))
        return along
    if mode == "asymmetric":
        place: Array = index / scale
        return place
    if mode == "pytorch_half_pixel" and len(index) == 1:
        return np.zeros(1)
    centre: Array = (index + 0.5) / scale - 0.5
    return centre


class BatchNormalization(OpRun):
    """Inference alone: up to opset 13, the reference implementation takes it for training."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, scale, bias, mean, variance = inputs
        if options.get("training_mode"):
            raise NotImplementedError("a batch norm is in training mode")
        shape = (-1, *(1 for _ in x.shape[2:]))
        parts = (part.reshape(shape) for part in (scale, bias, mean, variance))
        scale, bias, mean, variance = parts
        return (
            ((x - mean) / np.sqrt(variance + options["epsilon"]) * scale + bias).astype(x.dtype),
        )


class GlobalMaxPool(OpRun):
    """The largest value of each channel; the reference implementation drops its other axes."""

    op_domain = ""

    def _run(self, x: Array) -> Any:
        return (x.max(axis=tuple(range(2, x.ndim)), keepdims=True),)


class GroupNormalization(OpRun):
    """ONNX defines it by other operators, some of which compute in float32."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, scale, bias = inputs
        num_groups, epsilon = options["num_groups"], options["epsilon"]
        groups = x.reshape(x.shape[0], num_groups, -1)
        mean = groups.mean(axis=2, keepdims=True)
        deviation = np.sqrt(groups.var(axis=2, keepdims=True) + epsilon)
        normal = ((groups - mean) / deviation).reshape(x.shape)
        if len(scale) == num_groups != x.shape[1]:  # up to opset 20, one of each group
            scale, bias = (np.repeat(part, x.shape[1] // num_groups) for part in (scale, bias))
        shape = (-1, *(1 for _ in x.shape[2:]))
        return ((normal * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype),)


KERNELS = [
    *(Conv, ConvTranspose, MaxPool, AveragePool, GlobalMaxPool, Resize),
    *(BatchNormalization, GroupNormalization),
]

"""Operators that are loops in ONNX's reference implementation, computed by PyTorch and numpy.

Each derives from the reference implementation, which computes what is not handled here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_average_pool, op_conv, op_conv_transpose, op_max_pool
from torch.nn import functional

from engines.contract import Array
from exporters import corrected_kernels, loop_kernels, recurrent_kernels, resize_kernels

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
    """A transposed convolution of one to three axes."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        x, weight, bias = (*inputs, None)[:3]
        axes = x.ndim - 2
        if not 1 <= axes <= _AXES:
            return super()._run(*inputs, **options)  # type: ignore[no-untyped-call]
        window = _Window(weight.shape[2:], x.shape[2:], options)
        result = _TRANSPOSED[axes - 1](
            _tensor(x),
            _tensor(weight),
            stride=window.strides,
            groups=options.get("group") or 1,
            dilation=window.dilations,
        )
        places = [
            _kept(axis, size, whole, window.strides[axis], options)
            for axis, (size, whole) in enumerate(zip(x.shape[2:], result.shape[2:], strict=True))
        ]
        lacking = [
            max(0, end - whole) for (_, end), whole in zip(places, result.shape[2:], strict=True)
        ]
        result = functional.pad(result, [side for more in reversed(lacking) for side in (0, more)])
        kept = result.numpy()[(slice(None), slice(None), *(slice(*place) for place in places))]
        if bias is not None:
            kept = kept + bias.reshape(-1, *[1] * axes)
        return (np.ascontiguousarray(kept),)


def _kept(
    axis: int, size: int, whole: int, stride: int, options: Mapping[str, Any]
) -> tuple[int, int]:
    """Returns where the output of a transposed convolution begins and ends in its whole.

    Args:
        size: Of the input along the axis.
        whole: The size without padding.
    """
    kind, shape = options.get("auto_pad") or "NOTSET", options.get("output_shape")
    more = (options.get("output_padding") or {axis: 0})[axis]
    if not shape and not kind.startswith("SAME"):
        pads = None if kind == "VALID" else options.get("pads")
        low, high = (pads[axis], pads[axis + len(pads) // 2]) if pads else (0, 0)
        return low, whole + more - high
    length = shape[axis] if shape else size * stride
    total = max(0, whole + more - length)
    low = total // 2 if kind == "SAME_UPPER" else total - total // 2
    return low, low + length


class MaxPool(op_max_pool.MaxPool):
    """The largest values and, if they are asked for, their places."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        (x,) = inputs
        axes = x.ndim - 2
        if options.get("ceil_mode") or not 1 <= axes <= _AXES or x.dtype.kind != "f":
            return super()._run(x, **options)  # type: ignore[no-untyped-call]
        window = _Window(options["kernel_shape"], x.shape[2:], options)
        padded = _padded(x, window.pads, -math.inf)
        values, places = _MAX[axes - 1](
            padded,
            window.kernel,
            stride=window.strides,
            dilation=window.dilations,
            return_indices=True,
        )
        if len(self.output) == 1:
            return (values.numpy(),)
        # They count over the entire tensor, without its padding.
        within = np.unravel_index(places.numpy(), padded.shape[2:])
        where = [at - low for at, (low, _) in zip(within, window.pads, strict=True)]
        order = "F" if options.get("storage_order") else "C"
        flat: Array = np.ravel_multi_index(where, x.shape[2:], order=order)  # type: ignore[call-overload]
        maps = np.arange(math.prod(x.shape[:2])).reshape(*x.shape[:2], *[1] * axes)
        return (values.numpy(), flat + maps * math.prod(x.shape[2:]))


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
    *(Conv, ConvTranspose, MaxPool, AveragePool, GlobalMaxPool),
    *(BatchNormalization, GroupNormalization),
    *(*corrected_kernels.KERNELS, *recurrent_kernels.KERNELS, *resize_kernels.KERNELS),
    *loop_kernels.KERNELS,
]

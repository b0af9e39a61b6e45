"""Resize, and Upsample, which came before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_resize

from engines.contract import Array
from exporters.corrected_kernels import opset


class Resize(op_resize.Resize):
    """Nearest and linear resizing, axis by axis."""

    op_domain = ""

    def _run(self, *inputs: Any, **options: Any) -> Any:
        if opset(self) < 11:  # noqa: PLR2004
            x, scales = inputs
            return (_resized(x, range(x.ndim), scales, None, (options["mode"], *_FIRST)),)
        x, _, scales, sizes = (*inputs, None, None, None)[:4]
        mode, place = options["mode"], options["coordinate_transformation_mode"]
        axes = options.get("axes")
        simple = (
            mode in ("nearest", "linear")
            and place in _PLACES
            and options.get("keep_aspect_ratio_policy", "stretch") == "stretch"
            and not options.get("antialias")
            and (mode == "linear" or options.get("nearest_mode") in _ROUNDINGS)
        )
        axes = [*range(x.ndim)] if axes is None else [axis % x.ndim for axis in axes]
        ways = mode, place, options.get("nearest_mode") or ""
        by_size = scales is None or not len(scales)
        if not simple:
            if place == "align_corners" and not by_size:
                sizes = [int(x.shape[a] * float(s)) for a, s in zip(axes, scales, strict=True)]
                inputs = x, None, None, np.array(sizes)
            return super()._run(*inputs, **options)
        return (_resized(x, axes, None if by_size else scales, sizes, ways),)


class Upsample(OpRun):
    """Resize, up to opset 9."""

    op_domain = ""

    def _run(self, x: Array, scales: Array | None = None, **options: Any) -> Any:
        scales = np.asarray(options.get("scales") if scales is None else scales)
        mode = "linear" if options["mode"] == "bilinear" else options["mode"]
        return (_resized(x, range(x.ndim), scales, None, (mode, *_FIRST)),)


def _resized(
    x: Array,
    axes: Sequence[int],
    scales: Array | None,
    sizes: Array | None,
    ways: tuple[str, ...],
) -> Array:
    """Returns an array that is resized along axes.

    Args:
        scales: Of each axis; None means `sizes`.
        ways: "nearest" or "linear", how places are found, and how they are rounded.
    """
    mode, place, rounding = ways
    result = x
    values = sizes if scales is None else scales
    for axis, value in zip(axes, values, strict=True):  # type: ignore[arg-type]
        side = x.shape[axis]
        size = int(value) if scales is None else int(np.floor(side * float(value)))
        scale = size / side if scales is None else float(value)
        if size == side and scale == 1.0:
            continue
        # Runtimes find the nearest element in float32, where 3 / 0.6 is 5.
        kind = np.float32 if mode == "nearest" else np.float64
        at = _places(place, np.arange(size, dtype=kind), kind(scale), side)
        if mode == "nearest":
            index = _ROUNDINGS[rounding](at).clip(0, side - 1).astype(np.int64)
            result = result.take(index, axis)
            continue
        at = at.clip(0, side - 1)
        low = np.floor(at).astype(np.int64)
        high = np.minimum(low + 1, side - 1)
        shape = [1] * x.ndim
        shape[axis] = size
        part = (at - low).reshape(shape).astype(x.dtype)
        result = result.take(low, axis) * (1 - part) + result.take(high, axis) * part
    return np.ascontiguousarray(result)


_PLACES = {
    *("asymmetric", "half_pixel", "align_corners", "pytorch_half_pixel"),
    "tf_half_pixel_for_nn",
}
_FIRST = ("asymmetric", "floor")  # how all were resized up to opset 10
_ROUNDINGS: dict[str, Callable[[Array], Array]] = {
    "round_prefer_floor": lambda at: np.ceil(at - 0.5),
    "round_prefer_ceil": lambda at: np.floor(at + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}


def _places(mode: str, index: Array, scale: np.floating[Any], side: int) -> Array:
    """Returns the place in the input of each element of the output, as ONNX defines them."""
    if mode == "align_corners":
        if len(index) == 1:
            return np.zeros(1)
        # The reference implementation takes side * scale for the length, even if it is not whole;
        # runtimes, and ONNX's words, take that of the output.
        along: Array = index * index.dtype.type((side - 1) / (len(index) - 1))
        return along
    if mode == "asymmetric":
        place: Array = index / scale
        return place
    if mode == "pytorch_half_pixel" and len(index) == 1:
        return np.zeros(1)
    if mode == "tf_half_pixel_for_nn":
        middle: Array = (index + 0.5) / scale
        return middle
    centre: Array = (index + 0.5) / scale - 0.5
    return centre


KERNELS = [Resize, Upsample]

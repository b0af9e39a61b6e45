"""The noise floor of a verdict: how far rounding alone moves each row of a model's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.contract import Array
from exporters import PRECISIONS
from pipeline.golden.noise import by_row
from pipeline.verification import limits

# Ratios of this size are errors where the floor is zero.
UNBOUNDED = 1e90
# The ratio of an error to a floor of zero. Its square is finite.
_RATIO_TO_ZERO = 1e100


@dataclass(frozen=True)
class Floor:
    """The noise of one output, row by row, in the output's own unit.

    Rounding moves some rows much further than others: an untrained MobileNet's outputs for a
    black image, a thousand times as far as for a photograph. A floor over all rows would be that
    of the worst row, and hide any fault in the others.

    Attributes:
        rms: `[rows]`, the root mean square of p - r (see `golden.noise.measure`).
        max: `[rows]`, the largest |p - r|.
        comparable: `[rows]`, False if rounding noise swamps the row.
    """

    rms: Array
    max: Array
    comparable: Array


def pooled(noise: Array) -> Array:
    """Returns the noise of all rows together, repeated for each row, `[rows, 2]`.

    For quantization, whose noise is about the same in all rows: measured by one run, the noise of
    a single row may be near zero by chance.
    """
    rms, largest = np.sqrt(np.mean(np.square(noise[:, 0]))), noise[:, 1].max()
    return np.tile([rms, largest], (len(noise), 1))


def floor(reference: Array, noise: Array, precision: str, least: float = 1.0) -> Floor:
    """Returns the noise floor of an output, at least `least` rounding units of each row's scale.

    It is also at least `limits.LEAST_NOISE` rounding units of the usual scale of the rows.

    Args:
        reference: The float64 output, `[rows, ...]`.
        noise: What `golden.noise.measure` returned, `[rows, 2]`.
        least: Units of rounding that are always allowed.
    """
    unit, rows = PRECISIONS[precision].unit, np.abs(by_row(reference.astype(np.float64)))
    if reference.dtype.kind in "biu":
        # Integers are not rounded. If they were made from rounded numbers, the noise shows it.
        unit = 0.0
    scale, peak = np.sqrt(np.mean(np.square(rows), axis=1)), rows.max(axis=1)
    # A row of zeros has no scale of its own, so it gets that of all rows.
    scale = np.where(scale > 0, scale, np.sqrt(np.mean(np.square(rows))))
    peak = np.where(peak > 0, peak, rows.max())
    part = (
        min(limits.MAX_NOISE_UNITS * unit, limits.MAX_NOISE_FRACTION) or limits.MAX_NOISE_FRACTION
    )
    comparable = noise[:, 0] <= part * scale
    comparable |= PRECISIONS[precision].quantized
    return Floor(
        rms=np.maximum(
            _steadied(noise[:, 0], scale, comparable), unit * _least(least * scale, scale)
        ),
        max=np.maximum(_steadied(noise[:, 1], peak, comparable), unit * _least(least * peak, peak)),
        comparable=comparable,
    )


def _least(least: Array, scale: Array) -> Array:
    """Returns the least noise of each row in rounding units: `least`, or a part of the usual."""
    usual = float(np.quantile(scale, limits.USUAL_SCALE_QUANTILE, method="lower"))
    floors: Array = np.maximum(least, limits.LEAST_NOISE * usual)
    return floors


def in_floors(error: Array, floor: Array) -> Array:
    """Returns errors in units of the floor; where the floor is zero, any error is too large."""
    least = np.maximum(error / _RATIO_TO_ZERO, np.finfo(np.float64).tiny)
    return error / np.maximum(floor, least)


def _steadied(noise: Array, scale: Array, comparable: Array) -> Array:
    """Returns the noise of rows, raised where it is below the usual noise of the output.

    A few runs measure the noise of a row only roughly, since rounding moves the elements of a row
    together: a row may seem quiet by chance, and an engine that rounds differently then seems far
    off. So the variance of such a row becomes the mean of its own and the usual one at its scale,
    but its noise grows by a factor of `limits.MAX_NOISE_RAISE` at most.

    Args:
        noise: The noise of each row, `[rows]`.
        scale: The scale of each row's outputs, `[rows]`.
        comparable: Mask of the rows whose median noise, relative to their scale, is the usual one.
    """
    known = comparable & (scale > 0)
    if not known.any():
        return noise
    usual = np.median(noise[known] / scale[known]) * scale
    mean = np.sqrt((np.square(noise) + np.square(usual)) / 2)
    mixed = np.minimum(mean, limits.MAX_NOISE_RAISE * noise)
    return np.maximum(noise, mixed)

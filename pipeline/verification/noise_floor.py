"""The yardstick of a verdict: how far rounding alone moves each row of a model's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engines.contract import Array
from exporters import PRECISIONS
from pipeline.golden.noise import by_row
from pipeline.verification import limits


@dataclass(frozen=True)
class Floor:
    """The noise of one output, row by row, in the output's own unit.

    A row's own, since inputs differ in how far rounding moves them: of an untrained MobileNet,
    a black image a thousand times as far as a photograph. A floor over all rows would be that
    of the worst one, and hide any fault in the others.

    Attributes:
        rms: `[rows]`, the root mean square of p - r.
        max: `[rows]`, the largest |p - r|.
        comparable: `[rows]`, False if rounding noise swamps the row.
    """

    rms: Array
    max: Array
    comparable: Array


def pooled(noise: Array) -> Array:
    """Returns the noise of all rows together for each of them, `[rows, 2]`.

    For quantization, whose noise is of about the same size in all rows: of one run, that of a
    single row may be near zero by chance.
    """
    rms, largest = np.sqrt(np.mean(np.square(noise[:, 0]))), noise[:, 1].max()
    return np.tile([rms, largest], (len(noise), 1))


def floor(reference: Array, noise: Array, precision: str, least: float = 1.0) -> Floor:
    """Returns the noise, never below one unit of rounding at the scale of its row.

    Args:
        reference: The float64 output, `[rows, ...]`.
        noise: What `measure` gave, `[rows, 2]`.
        least: Units of rounding that are always allowed for.
    """
    unit, rows = PRECISIONS[precision].unit, np.abs(by_row(reference.astype(np.float64)))
    if reference.dtype.kind in "biu":
        # Nothing rounds an integer; where it was made of rounded numbers, the noise shows it.
        unit = 0.0
    scale, peak = np.sqrt(np.mean(np.square(rows), axis=1)), rows.max(axis=1)
    # A row of zeros has no scale of its own.
    scale = np.where(scale > 0, scale, np.sqrt(np.mean(np.square(rows))))
    peak = np.where(peak > 0, peak, rows.max())
    part = min(limits.LOST_UNITS * unit, limits.LOST_PART) or limits.LOST_PART
    comparable = noise[:, 0] <= part * scale
    comparable |= PRECISIONS[precision].quantized
    return Floor(
        rms=np.maximum(_steadied(noise[:, 0], scale, comparable), least * unit * scale),
        max=np.maximum(_steadied(noise[:, 1], peak, comparable), least * unit * peak),
        comparable=comparable,
    )


def _steadied(noise: Array, scale: Array, comparable: Array) -> Array:
    """Returns the noise of rows, raised where it is less than is usual among them.

    A few runs tell the noise of a row only roughly, since rounding moves the elements of a row
    together: one that seems quiet may be so by chance, and an engine that rounds another way then
    seems far off. So the variance of such a row is the mean of its own and the usual one at its
    scale, as far as that at most doubles its noise.

    Args:
        noise: Of each row, `[rows]`.
        scale: Of each row's outputs, `[rows]`.
        comparable: The rows among which the usual noise is the median.
    """
    known = comparable & (scale > 0)
    if not known.any():
        return noise
    usual = np.median(noise[known] / scale[known]) * scale
    mean = np.sqrt((np.square(noise) + np.square(usual)) / 2)
    mixed = np.minimum(mean, limits.RAISED_NOISE * noise)
    return np.maximum(noise, mixed)

"""Confidence intervals of medians of correlated, heavy-tailed samples, and of percentiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
# Samples a few milliseconds apart are alike: another process, a clock. Each of this many blocks is
# long enough to be nearly independent of the others, and so many still bound a median tightly.
BLOCKS = 20
# A queue remembers longer than a machine, so the blocks for it are longer; and the factor of
# Student's distribution for so many.
_LONG_BLOCKS, _STUDENT = 10, 2.262
# The fewest samples whose range covers a median at 95 %: 1 - 2 / 2^6 = 97 %.
FEWEST = 6


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def reach(self) -> float:
        """How far the interval reaches from the value, as a part of it."""
        return max(self.high - self.value, self.value - self.low) / self.value

    def widened(self, part: float) -> Interval:
        """Returns the interval, reaching further to both sides by a part of its ends."""
        return Interval(self.value, self.low * (1 - part), self.high * (1 + part))


def location(samples: np.ndarray[Any, Any]) -> Interval:
    """Returns the typical value of positive samples `[count]`, in the order they were measured.

    The samples are cut into blocks. The medians of the blocks give the Hodges-Lehmann estimate and
    the interval of Wilcoxon's signed ranks: Hollander, Wolfe and Chicken, Nonparametric Statistical
    Methods (3rd ed., 2014), sections 3.2 and 3.3; here of the logarithms. With fewer samples than
    `FEWEST` the interval is their range.
    """
    blocks = np.array_split(np.log(samples), min(BLOCKS, len(samples)))
    medians = np.array([np.median(block) for block in blocks])
    first, second = np.triu_indices(len(medians))
    means = np.sort((medians[first] + medians[second]) / 2)
    cut = _cut(len(medians))
    value, low, high = np.exp([np.median(means), means[cut], means[-1 - cut]])
    return Interval(float(value), float(low), float(high))


@functools.cache
def _cut(count: int) -> int:
    """Returns how many of the smallest and of the largest means an interval leaves out.

    From the exact distribution of the signed-rank statistic of `count` values.
    """
    ways = np.zeros(count * (count + 1) // 2 + 1)
    ways[0] = 1
    for rank in range(1, count + 1):
        ways[rank:] += ways[:-rank].copy()
    below = np.cumsum(ways) / 2**count
    return max(0, int(np.searchsorted(below, (1 - CONFIDENCE) / 2, side="right")) - 1)


def percentile(
    ranked: Sequence[float] | np.ndarray[Any, Any], percent: float, alike: float = 1.0
) -> Interval | None:
    """Returns a percentile and its interval by order statistics; None if there are too few samples.

    Conover, Practical Nonparametric Statistics (3rd ed., 1999), section 3.2, with the normal
    approximation of the binomial ranks.

    Args:
        ranked: Samples in rising order. They should be nearly independent.
        percent: From 0 to 100.
        alike: How many samples tell as much as one that is independent of the others.
    """
    count, part = len(ranked), percent / 100
    # What is estimated from blocks has fewer degrees of freedom.
    width = 1.96 if alike == 1 else _STUDENT
    reach = width * math.sqrt(count * part * (1 - part) * alike)
    low, high = math.floor(count * part - reach), math.ceil(count * part + reach)
    if low < 1 or high >= count:
        return None
    return Interval(
        float(np.percentile(ranked, percent)), float(ranked[low - 1]), float(ranked[high])
    )


def percentiles(times: Sequence[float], *, queued: bool = False) -> dict[str, Interval]:
    """Returns the percentiles of samples by name ("p99"), those that enough samples know.

    Args:
        times: Samples in the order they were measured.
        queued: Each sample is like those before it, as waits in a queue are.
    """
    ranked = np.sort(times)
    known = {
        f"p{q:g}": percentile(ranked, q, _alike(np.array(times), ranked, q) if queued else 1.0)
        for q in (50, 90, 95, 99, 99.9)
    }
    return {name: interval for name, interval in known.items() if interval is not None}


def _alike(times: np.ndarray[Any, Any], ranked: np.ndarray[Any, Any], percent: float) -> float:
    """Returns how many samples tell as much of a percentile as an independent one.

    From how much the part of the samples above the percentile varies between blocks. Heidelberger
    and Lewis, Quantile Estimation in Dependent Sequences, Operations Research 32 (1984).
    """
    if len(times) < 2 * _LONG_BLOCKS:
        return 1.0
    above = times > np.percentile(ranked, percent)
    parts = [block.mean() for block in np.array_split(above, _LONG_BLOCKS)]
    part = percent / 100
    independent = part * (1 - part) / (len(times) / _LONG_BLOCKS)
    return max(1.0, float(np.var(parts, ddof=1)) / independent)

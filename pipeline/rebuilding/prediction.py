"""Upper prediction limits: how large a further value may be, after a few of the same kind.

Two rules, and the larger limit counts, so that both promises hold. Of normal values, a further one
exceeds `mean + t * s * sqrt(1 + 1/N)` with the probability that Student's quantile `t` is for.
Of values of any distribution, a further one exceeds the largest of N at most once in N + 1 times.
Meeker, Hahn and Escobar, Statistical Intervals (2nd ed., 2017), chapters 4 and 5.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

# How often a further build of the same kind falls outside of a region, by what it promises of
# normal values: all quantities of a kind together, so that each has its share.
FALSE_ALARMS = 0.05
_HALVINGS = 100


def upper(values: Sequence[float], false_alarms: float, least: float) -> float:
    """Returns the limit that a further value exceeds seldom.

    Args:
        values: Two or more, normal or nearly so: logarithms, or roots of counts.
        false_alarms: How often a further one may exceed the limit, if they are normal.
        least: The standard deviation, if that of the values is smaller.
    """
    count = len(values)
    deviation = max(statistics.stdev(values), least)
    width = student(1 - false_alarms, count - 1) * math.sqrt(1 + 1 / count)
    return max(*values, statistics.fmean(values) + width * deviation)


def student(probability: float, degrees: int) -> float:
    """Returns a quantile of Student's distribution.

    The distribution function is that of Abramowitz and Stegun, Handbook of Mathematical Functions
    (1964), 26.7.3 and 26.7.4, for whole degrees of freedom.

    Args:
        probability: From 0.5 to below 1.
        degrees: Degrees of freedom, 1 or more.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if (1 + _within(middle, degrees)) / 2 < probability:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """Returns the probability that |t| is at most `sqrt(degrees) * tan(angle)`."""
    odd = degrees % 2
    total = 0.0
    term = math.cos(angle) if odd else 1.0
    for index in range(1 + odd, degrees, 2):
        total += term
        term *= math.cos(angle) ** 2 * index / (index + 1)
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total

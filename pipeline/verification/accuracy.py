"""What quantization costs: the drop in accuracy with its interval, and signal to noise.

A quantized model is not the same model with other rounding errors. It is another model, and judged
by its accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_DEVIATIONS = 1.959964  # of the normal distribution: 95 %
_LIMIT = 200.0  # dB; more than float64 resolves, in place of infinity, which JSON lacks
_STEPS = 60  # of a bisection; each halves the interval


@dataclass(frozen=True)
class Drop:
    """The accuracy lost between two models on the same images, as fractions of them.

    Attributes:
        value: Accuracy before minus accuracy after.
        low: Lower end of the 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        parts = (100 * bound for bound in (self.value, self.low, self.high))
        return "{:.2f} pp ({:.2f} to {:.2f})".format(*parts)


def drop(images: int, lost: int, gained: int) -> Drop:
    """Returns the drop in accuracy with Tango's interval.

    The score interval of the difference of two paired proportions (Tango, 1998, "Equivalence test
    and confidence interval for the difference in proportions for the paired-sample design"). It
    counts all images, so that it is as wide as they are few even where no image is lost or gained.

    Args:
        images: How many images both models classified.
        lost: Images that only the first model classifies right.
        gained: Images that only the second one does.
    """
    value = (lost - gained) / images

    def deviation(difference: float) -> float:
        """Returns how many standard deviations the counts are from a true difference."""
        a, c = 2 * images, -gained * difference * (1 - difference)
        b = -lost - gained + (a - lost + gained) * difference
        only_second = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        variance = images * (2 * only_second + difference * (1 - difference))
        if variance <= 0:
            return 0.0 if lost - gained == images * difference else math.inf
        return abs(lost - gained - images * difference) / math.sqrt(variance)

    def root(outside: float) -> float:
        """Returns the bound between the observed difference and an impossible one."""
        inside = value
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            if deviation(middle) < _DEVIATIONS:
                inside = middle
            else:
                outside = middle
        return inside

    return Drop(value, root(-1.0), root(1.0))


def faults(lost: Drop, max_drop: float) -> list[str]:
    """Returns in words that too much accuracy is lost, if it is, and not by chance.

    Args:
        max_drop: The accuracy that may be lost, as a fraction of the images.
    """
    if lost.value <= max_drop or lost.low <= 0:
        return []
    return [
        f"accuracy falls by {lost}, {100 * max_drop:g} pp allowed; calibrate on images like those"
        " to be served"
    ]


def doubts(images: int, lost: Drop, max_drop: float) -> list[str]:
    """Returns in words that the images are too few to show that the accuracy is kept, if so."""
    if lost.high <= max_drop:
        return []
    return [
        f"{images:,} test images are too few to tell: accuracy falls by {lost}, and"
        f" {100 * max_drop:g} pp are allowed"
    ]


def sqnr(scale: float, error: float) -> float:
    """Returns the signal to quantization noise ratio in dB, clipped to -200 to 200.

    Args:
        scale: Root mean square of the reference.
        error: Root mean square of the difference to the reference.
    """
    if not error or not scale:
        return _LIMIT if not error else -_LIMIT
    return min(max(20 * math.log10(scale / error), -_LIMIT), _LIMIT)

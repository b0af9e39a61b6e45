"""What quantization costs: the drop in accuracy with its interval, and signal to noise.

A quantized model is not the same model with other rounding errors. It is another model, and judged
by its accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_CONFIDENCE = 0.95
_LIMIT = 200.0  # dB; more than float64 resolves, in place of infinity, which JSON lacks
_STEPS = 60  # of a bisection; each halves the interval


@dataclass(frozen=True)
class Drop:
    """The accuracy lost between two models on the same images, as fractions of them.

    Attributes:
        value: Accuracy before minus accuracy after.
        low: Lower end of the exact 95 % interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        parts = (100 * bound for bound in (self.value, self.low, self.high))
        return "{:.2f} pp ({:.2f} to {:.2f})".format(*parts)


def drop(images: int, lost: int, gained: int) -> Drop:
    """Returns the drop in accuracy with McNemar's exact interval.

    Among the images that only one of the models classifies right, the number of lost ones is
    binomial. The interval of their share is Clopper and Pearson's (1934), scaled to all images.

    Args:
        images: How many images both models classified.
        lost: Images that only the first model classifies right.
        gained: Images that only the second one does.
    """
    among = lost + gained
    low, high = _clopper_pearson(lost, among)
    return Drop(
        (lost - gained) / images, (2 * low - 1) * among / images, (2 * high - 1) * among / images
    )


def _clopper_pearson(hits: int, trials: int) -> tuple[float, float]:
    """Returns the exact interval of a probability after `hits` of `trials`."""
    tail = (1 - _CONFIDENCE) / 2
    counts = np.arange(trials + 1)
    logs = np.array([math.lgamma(number + 1) for number in range(trials + 1)])
    ways = logs[-1] - logs - logs[::-1]

    def at_least(p: float, count: int) -> float:
        terms = ways + counts * math.log(p) + (trials - counts) * math.log1p(-p)
        return float(np.exp(terms[count:]).sum())

    def root(count: int, wanted: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if at_least(middle, count) < wanted else (low, middle)
        return (low + high) / 2

    return (
        root(hits, tail) if hits else 0.0,
        root(hits + 1, 1 - tail) if hits < trials else 1.0,
    )


def sqnr(scale: float, error: float) -> float:
    """Returns the signal to quantization noise ratio in dB, clipped to -200 to 200.

    Args:
        scale: Root mean square of the reference.
        error: Root mean square of the difference to the reference.
    """
    if not error or not scale:
        return _LIMIT if not error else -_LIMIT
    return min(max(20 * math.log10(scale / error), -_LIMIT), _LIMIT)

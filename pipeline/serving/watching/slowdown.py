"""A sequential test of latencies: has a server become slower, and stayed so?"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field


def windows_in_a_row(baseline: int, rate: float) -> int:
    """Returns how many windows have to be slow one after the other before that is an alarm.

    Args:
        baseline: Windows that those are compared with.
        rate: The largest rate of false alarms for each window, see `Slowdown`.
    """
    count = 1
    while 1 / math.comb(baseline + count, count) > rate:
        count += 1
    return count


@dataclass
class Slowdown:
    """Compares windows of requests with the first ones, by their ranks.

    It is an alarm if `needed` windows in a row all took longer than each of the first `baseline`
    windows. If nothing has changed, all orders of the `baseline + needed` windows are equally
    probable, whatever the distribution of the times, and this one has the probability
    1 / C(baseline + needed, needed): the rate of false alarms for each window. Windows that follow
    each other are alike to some extent, so a window counts only if it is longer by more than
    `tolerance`, too, which no slow drift within that part sets off.

    Attributes:
        baseline: How many windows the later ones are compared with.
        needed: How many slow windows in a row are an alarm.
        tolerance: A part of the baseline's longest window.
        longest: The baseline's longest window in seconds; 0 until one is known.
        slow: Whether the last `needed` windows were all slow.
    """

    baseline: int
    needed: int
    tolerance: float
    longest: float = 0.0
    slow: bool = False
    _windows: int = 0
    _last: deque[bool] = field(default_factory=deque, repr=False)

    def __post_init__(self) -> None:
        self._last = deque(maxlen=self.needed)

    @property
    def ready(self) -> bool:
        """Whether the baseline is complete."""
        return self._windows >= self.baseline

    @property
    def rate(self) -> float:
        """The largest rate of false alarms for each window."""
        return 1 / math.comb(self.baseline + self.needed, self.needed)

    def add(self, seconds: float) -> None:
        """Takes the typical time of a request in the next window."""
        if not self.ready:
            self._windows += 1
            self.longest = max(self.longest, seconds)
            return
        self._last.append(seconds > self.longest * (1 + self.tolerance))
        self.slow = len(self._last) == self.needed and all(self._last)

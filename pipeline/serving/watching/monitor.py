"""Judges the replies of a server in windows, and says when something begins and ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from engines.contract import Array, Outputs
from pipeline.golden.file import Reference
from pipeline.serving.watching.slowdown import Slowdown
from pipeline.verification.verdict import judge_rows

# In a window, the part of the requests that are quicker than its typical time. The quickest
# requests met an idle server, so that this time is that of the model, whatever the load.
QUICK = 0.1
# The fewest replies that are judged together.
FEWEST = 5
# Failed requests in a row after which a server counts as down.
FAILURES = 3

Kind = Literal["mismatch", "slower", "down"]


@dataclass(frozen=True)
class Alarm:
    """Something that began or ended.

    Attributes:
        kind: What it is about.
        begins: It begins; else it ends.
        reason: In words.
    """

    kind: Kind
    begins: bool
    reason: str


@dataclass(frozen=True)
class Window:
    """What a number of replies showed.

    Attributes:
        times: Seconds of each request.
        quick: The time that `QUICK` of the requests kept, in seconds.
        floors: The largest error of any row in units of its noise floor.
        faults: How the outputs differ from the model's, in words; () if they do not.
    """

    times: tuple[float, ...]
    quick: float
    floors: float
    faults: tuple[str, ...]


@dataclass
class Monitor:
    """Collects replies to golden rows, and judges each window when it is complete.

    Attributes:
        golden: What the replies have to equal.
        size: Requests of a window.
        slowdown: The test of the latencies.
        active: The alarms that have begun and not ended, with their reasons.
        last: The last complete window.
    """

    golden: Reference
    size: int
    slowdown: Slowdown
    active: dict[Kind, str] = field(default_factory=dict)
    last: Window | None = None
    _rows: list[int] = field(default_factory=list, repr=False)
    _outputs: list[Outputs] = field(default_factory=list, repr=False)
    _times: list[float] = field(default_factory=list, repr=False)
    _failures: int = field(default=0, repr=False)

    def reply(self, row: int, outputs: Outputs, seconds: float) -> list[Alarm]:
        """Takes the reply to one golden row; returns what began or ended with it.

        Args:
            row: The index of the golden row.
            outputs: By name, `[1, …]`.
            seconds: From sending the request to its reply.
        """
        self._failures = 0
        alarms = self._end("down", "it answers again")
        self._rows.append(row)
        self._outputs.append(outputs)
        self._times.append(seconds)
        if len(self._rows) == self.size:
            alarms += self._close()
        return alarms

    def failure(self, reason: str) -> list[Alarm]:
        """Takes a request that failed; returns what began with it."""
        self._failures += 1
        if self._failures < FAILURES:
            return []
        return self._begin("down", f"{self._failures} requests in a row failed: {reason}")

    def finish(self) -> list[Alarm]:
        """Judges the outputs of the last window though it is not complete, if they are enough."""
        return self._close(complete=False) if len(self._rows) >= FEWEST else []

    def _close(self, *, complete: bool = True) -> list[Alarm]:
        faults, floors = self._judge()
        times = tuple(self._times)
        self.last = Window(times, float(np.quantile(times, QUICK)), floors, faults)
        self._rows, self._outputs, self._times = [], [], []
        if faults:
            return self._begin("mismatch", "; ".join(faults))
        alarms = self._end("mismatch", "its outputs equal the model's again")
        if not complete:
            return alarms
        self.slowdown.add(self.last.quick)
        if self.slowdown.slow:
            longer = self.last.quick / self.slowdown.longest
            alarms += self._begin(
                "slower",
                f"{self.slowdown.needed} windows in a row took longer than every one of the first"
                f" {self.slowdown.baseline} and {self.slowdown.tolerance:.0%} more; the last one"
                f" {longer:.2f} times as long as the longest of those",
            )
        else:
            alarms += self._end("slower", "it is as quick as before")
        return alarms

    def _judge(self) -> tuple[tuple[str, ...], float]:
        rows = np.array(self._rows)
        joined: dict[str, Array] = {}
        for name, native in self.golden.native.items():
            parts = [outputs[name] for outputs in self._outputs]
            kind = f"{native.dtype.name}{[1, *native.shape[1:]]}"
            for part in parts:
                if (actual := f"{part.dtype.name}{[*part.shape]}") != kind:
                    return (f"{name} is {actual} where {kind} was expected",), np.inf
            joined[name] = np.concatenate(parts)
        judged = judge_rows(self.golden, rows, joined)
        faults = tuple(f"{output.name}: {fault}" for output in judged for fault in output.faults)
        return faults, max(output.max_ratio for output in judged)

    def _begin(self, kind: Kind, reason: str) -> list[Alarm]:
        """Keeps the latest reason; returns the alarm if it is not active already."""
        begins = kind not in self.active
        self.active[kind] = reason
        return [Alarm(kind, True, reason)] if begins else []

    def _end(self, kind: Kind, reason: str) -> list[Alarm]:
        if self.active.pop(kind, None) is None:
            return []
        return [Alarm(kind, False, reason)]

"""Timing sessions at two boundaries, in interleaved rounds, with confidence intervals.

Every backend is timed at the same boundaries. "device" is from launch to completion, with the
inputs already where the engine reads them. "end to end" is from numpy arrays to numpy arrays.

In a round each candidate has one turn, in random order, so that drift of the machine affects all
alike; in its turn it is timed once at each boundary. The median of a turn's iterations at a
boundary is one sample. A ratio is of the samples within each round, so that drift common to both
cancels. Rounds are short, and many.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engines.contract import Feeds, Session
from engines.errors import DeployError
from pipeline.benchmarking import intervals
from pipeline.benchmarking.contention import Waiting, longest_run
from pipeline.benchmarking.intervals import Interval

Boundary = Literal["device", "end to end"]
BOUNDARIES: tuple[Boundary, ...] = ("device", "end to end")

# Two rounds in each block of an interval. Fewer only if rounds take long.
MIN_ROUNDS = 2 * intervals.BLOCKS
# Before so many rounds it does not end, unless the budget is spent: the median of two is their
# mean, whose intervals hold that of skewed times too rarely (69 % for a Pareto distribution; 93 %
# with so many).
_FIRST_LOOK = 5 * intervals.BLOCKS
MAX_ROUNDS = 5000
# Other processes come and go within seconds, so that a shorter time would show but one of their
# states.
MIN_SECONDS = 1.0
# What counts of one candidate's turn at one boundary.
TURN_SECONDS = 0.001
# A turn begins with iterations that do not count. They bring code and data back into the caches,
# and last as long as the threads of the candidate before spin, waiting for work: GNU OpenMP's for
# 7 ms, oneTBB's for 1 ms. In that time others on the same CPUs took 1.3 to 2 times as long. Caches
# lose something between the two boundaries of a turn, too: PyTorch's next 0.4 ms became 0.45 ms.
RUN_IN_SECONDS = 0.001
_SPIN_WATCHED = 0.03
_SPIN_UNKNOWN = 0.01
# Warm if this many runs in a row have not been faster than one before.
WARM_RUNS = 3
# Another session of a candidate that is warm is warm after this time.
_WARM_SESSION = 0.005
WARMUP_SECONDS = (0.1, 3.0)
MOST_ITERATIONS = 5000  # of a turn
# Neither cold caches nor threads that spin matter to an iteration this long; nor, to a shorter one,
# what caches lose between two boundaries.
LONG_SECONDS, LONG_BETWEEN_SECONDS = 0.2, 0.02
# Enough rounds: no interval reaches further than this, as a part of its value, to either side.
NARROW = 0.01
# Rounds grow by this part between two looks at the intervals. Each look is a chance to stop at a
# happily narrow one.
_LOOK = 1.3
# Sessions on the same file differ, however long they are timed: where their memory lies is another
# accident each time. On one machine the typical difference was 0.2 %, on another 1 %, and one in
# ten was off by 3 %. So several sessions of a candidate take turns, and how much they differ is
# part of the interval. Where it is not known, the interval gets this part in its place.
SESSIONS = 8
SESSIONS_DIFFER = 0.02
# Rounds until the next session's turn: with the fewest rounds, every session has two.
_SESSION_ROUNDS = 2
# Settled: the interval reaches at most this part of the value to either side.
SETTLED = 0.1
# How often a round looks at how long the threads wait for a CPU, which takes longer than a sample.
_WAITING_EVERY = 10
# Busy: threads wait at least this long for a CPU in each second, and a typical sample takes this
# much longer than a fast one. Where only few samples are interrupted, their median is as on a quiet
# machine. Threads that wait for each other by spinning are late in all of them.
BUSY_WAITING = 0.25
BUSY_SLOWER = 1.5


@dataclass(frozen=True)
class Candidate:
    """What is to be timed on given inputs.

    Attributes:
        others: More sessions on the same file. With `intervals.FEWEST` in all, they take turns.
    """

    name: str
    session: Session
    feeds: Feeds
    others: Sequence[Session] = ()


@dataclass(frozen=True)
class Timing:
    """The time of one inference at one boundary.

    Attributes:
        seconds: The typical median of a round, in seconds.
        ratio: The baseline's time divided by this one, paired by round: above 1 is faster. Its
            interval holds what other sessions on the same files would give.
        rounds: Number of rounds.
        iterations: Number of iterations over all rounds.
        percentiles: Seconds by percentile ("p99"), over all iterations, with their intervals; only
            those whose interval lies within the samples.
        settled: The ratio's interval, or the baseline's own, is narrow enough.
        waiting: How long its threads waited for a CPU in each second, of all threads together.
        busy: Other processes slowed it down so much that they are what was measured.
    """

    name: str
    boundary: Boundary
    seconds: Interval
    ratio: Interval
    rounds: int
    iterations: int
    percentiles: dict[str, Interval]
    settled: bool
    waiting: float
    busy: bool


def measure(
    candidates: Sequence[Candidate],
    *,
    budget: float,
    seed: int,
    progress: Callable[[float], None] = lambda _seconds: None,
    failed: Callable[[str, DeployError], None] | None = None,
    running: Callable[[str], None] = lambda _name: None,
) -> list[Timing]:
    """Times candidates side by side at both boundaries; the first is the ratios' baseline.

    It ends when every interval is narrow, or when the budget is spent.

    Args:
        budget: Seconds for all of them together. A result that has not settled by then has
            `settled` False. Each candidate's warm-up at a boundary is within it, too.
        seed: Seed of the order within rounds.
        progress: Called after every round with the seconds it took.
        failed: Called with the name of a candidate that fails and its error; the others go on, and
            the first of them is the baseline. By default the error is raised.
        running: Called with the name of a candidate before it runs.

    Returns:
        The timings of the candidates that did not fail, boundary by boundary.
    """
    order = random.Random(seed)  # noqa: S311 - no secret
    entrants: list[_Entrant] = []
    several = [1 + len(c.others) for c in candidates if 1 + len(c.others) >= intervals.FEWEST]
    most = min(several, default=1)

    def gone(name: str, error: DeployError) -> None:
        if failed is None:
            raise error
        failed(name, error)

    for candidate in candidates:
        running(candidate.name)
        try:
            entrants.append(_Entrant(candidate, min(budget, WARMUP_SECONDS[1]), most))
        except DeployError as error:
            gone(candidate.name, error)
    run_in = RUN_IN_SECONDS
    start, look = time.perf_counter(), float(_FIRST_LOOK)
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(1, MAX_ROUNDS + 1):
            began = time.perf_counter()
            for entrant in order.sample(entrants, len(entrants)):
                running(entrant.candidate.name)
                try:
                    place = number // _SESSION_ROUNDS
                    entrant.turn(order, run_in, place, observe=number % _WAITING_EVERY == 1)
                except DeployError as error:
                    gone(entrant.candidate.name, error)
                    entrants.remove(entrant)
                run_in = max(RUN_IN_SECONDS, entrant.spin)
            progress(time.perf_counter() - began)
            if not entrants:
                return []
            spent = time.perf_counter() - start
            if number >= intervals.FEWEST and (
                spent >= (budget if number >= MIN_ROUNDS // 2 else 2 * budget)
            ):
                break
            if number >= look and spent >= MIN_SECONDS:
                if all(e.reach <= NARROW for b in BOUNDARIES for e in _estimates(entrants, b)):
                    break
                look *= _LOOK
    finally:
        if collecting:
            gc.enable()
    return [
        entrant.parts[boundary].timing(entrant.candidate.name, boundary, estimate)
        for boundary in BOUNDARIES
        for entrant, estimate in zip(entrants, _estimates(entrants, boundary), strict=True)
    ]


@dataclass(frozen=True)
class _Estimate:
    """What the rounds of a timing say; see `Timing`.

    Attributes:
        reach: How far the interval of the ratio reaches, or of the seconds for a baseline.
    """

    seconds: Interval
    ratio: Interval
    reach: float


class _Part:
    """The runs of a candidate at one boundary, which is warm when this has been made.

    Attributes:
        runs: Of each session.
        each: Seconds of an iteration, about.
        samples: The median of each turn.
        places: The place of the session in `runs` that had each turn.
        every: All durations that count.
        waiting: How long its threads waited for a CPU.
    """

    def __init__(self, runs: Sequence[Callable[[int], list[float]]], warmup: float) -> None:
        self.runs, self.each = runs, _warm(runs[0], warmup)
        for run in runs[1:]:
            run(max(WARM_RUNS, _count(_WARM_SESSION, self.each)))
        self.samples: list[float] = []
        self.places: list[int] = []
        self.every: list[float] = []
        self.waiting = Waiting()

    def turn(self, spare: int, place: int) -> None:
        """Runs for `TURN_SECONDS`, after so many iterations that do not count."""
        place %= len(self.runs)
        times = self.runs[place](spare + _count(TURN_SECONDS, self.each))[spare:]
        self.places.append(place)
        self.samples.append(float(np.median(times)))
        self.every.extend(times)

    def timing(self, name: str, boundary: Boundary, estimate: _Estimate) -> Timing:
        """Returns the result."""
        return Timing(
            name=name,
            boundary=boundary,
            seconds=estimate.seconds,
            ratio=estimate.ratio,
            rounds=len(self.samples),
            iterations=len(self.every),
            percentiles=intervals.percentiles(self.every),
            settled=estimate.reach <= SETTLED,
            waiting=self.waiting.part,
            busy=self.waiting.part > BUSY_WAITING and _slowed(self.samples),
        )


class _Entrant:
    """A candidate and what has been measured of it.

    Attributes:
        parts: By boundary.
        spin: How long its threads spin after a run, in seconds.
    """

    def __init__(self, candidate: Candidate, warmup: float, most: int) -> None:
        """Warms the candidate up.

        Args:
            most: How many of its sessions take turns, if it has as many.
        """
        self.candidate = candidate
        sessions = (candidate.session, *candidate.others)
        chosen = sessions[: most if len(sessions) >= most else 1]
        self.parts = {
            boundary: _Part([_clocked(one, candidate.feeds, boundary) for one in chosen], warmup)
            for boundary in BOUNDARIES
        }
        self.spin = _spin_seconds(self.parts["end to end"].runs[0])

    def turn(self, order: random.Random, run_in: float, place: int, *, observe: bool) -> None:
        """Runs the session at a place at each boundary, after seconds that do not count."""
        longest = LONG_SECONDS
        for boundary in order.sample(BOUNDARIES, len(BOUNDARIES)):
            part = self.parts[boundary]
            with part.waiting if observe else nullcontext():
                part.turn(_count(run_in, part.each, longest), place)
            run_in, longest = RUN_IN_SECONDS, LONG_BETWEEN_SECONDS


def _estimates(entrants: Sequence[_Entrant], boundary: Boundary) -> list[_Estimate]:
    """Returns an estimate for each candidate at a boundary; the first is the baseline."""
    parts = [entrant.parts[boundary] for entrant in entrants]
    times = [np.array(part.samples) for part in parts]
    estimates = []
    for index, (part, own) in enumerate(zip(parts, times, strict=True)):
        seconds, reach = _over_sessions(own, [part])
        ratio = Interval(1.0, 1.0, 1.0)
        if index > 0:
            ratio, reach = _over_sessions(times[0] / own, [parts[0], part])
        estimates.append(_Estimate(seconds, ratio, reach))
    return estimates


def _over_sessions(samples: np.ndarray[Any, Any], parts: Sequence[_Part]) -> tuple[Interval, float]:
    """Returns the typical value of samples that sessions of some parts had in common.

    Its interval holds both how the samples vary in time and how the sessions vary, which more time
    does not narrow.

    Returns:
        The value, and how far the interval would reach if all sessions were alike.
    """
    in_time = intervals.location(samples)
    among = None
    if all(len(part.runs) > 1 for part in parts):
        among = intervals.of_groups(samples, np.array(parts[0].places))
    if among is None:
        return in_time.widened(SESSIONS_DIFFER), in_time.reach
    return among.including(in_time), in_time.reach


def _slowed(samples: Sequence[float]) -> bool:
    fast, typical = np.percentile(samples, [10, 50])
    return bool(typical > BUSY_SLOWER * fast)


def _warm(run: Callable[[int], list[float]], most: float) -> float:
    """Warms a candidate up, until its runs stop getting faster; returns the seconds of one run.

    Args:
        most: Seconds after which it stops in any case.
    """
    least = WARMUP_SECONDS[0]
    start = time.perf_counter()
    run(1)  # may compile something
    fastest, since = max(min(run(1)), 1e-9), 0
    while (spent := time.perf_counter() - start) < most and (spent < least or since < WARM_RUNS):
        now = float(np.median(run(_count(TURN_SECONDS, fastest))))
        since = 0 if now < fastest * (1 - NARROW) else since + 1
        fastest = max(min(now, fastest), 1e-9)
    return fastest


def _count(seconds: float, each: float, longest: float = math.inf) -> int:
    """Returns how many iterations take about so many seconds; none if one takes the longest."""
    return min(MOST_ITERATIONS, max(1, round(seconds / each))) if each < longest else 0


def _spin_seconds(run: Callable[[int], list[float]]) -> float:
    """Returns how long a candidate's threads spin after a run, in seconds."""
    longest = 0.0
    for _ in range(WARM_RUNS):
        run(1)
        ran = longest_run(_SPIN_WATCHED)
        longest = max(longest, _SPIN_UNKNOWN if ran is None else ran)
    return longest


def _clocked(session: Session, feeds: Feeds, boundary: Boundary) -> Callable[[int], list[float]]:
    """Returns a function that runs a session n times and returns n durations in seconds."""
    if boundary == "end to end":
        return lambda count: _wall(count, lambda: session.run(feeds))
    session.bind(feeds)
    if (stream := session.stream) is not None:
        return lambda count: _events(count, session, stream)

    def launch() -> None:
        session.launch()
        session.synchronize()

    return lambda count: _wall(count, launch)


def _wall(count: int, action: Callable[[], object]) -> list[float]:
    clock = time.perf_counter_ns
    times = []
    for _ in range(count):
        start = clock()
        action()
        times.append((clock() - start) / 1e9)
    return times


def _events(count: int, session: Session, stream: int) -> list[float]:
    """Times launches with CUDA events on the session's own stream."""
    from engines.cuda import Cuda

    return Cuda(session.device).timed(stream, count, session.launch)

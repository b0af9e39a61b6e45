"""Timing sessions at two boundaries, in interleaved rounds, with confidence intervals.

Every backend is timed at the same boundaries. "device" is from launch to completion, with the
inputs already where the engine reads them. "end to end" is from numpy arrays to numpy arrays.

A round times every candidate once at each boundary, in random order, so that drift of the machine
affects all alike. The median of a candidate's iterations in a round is one sample. A ratio is the
median over rounds of the ratios within each round, so that drift common to both cancels.
"""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from engines.contract import Feeds, Session

Boundary = Literal["device", "end to end"]
BOUNDARIES: tuple[Boundary, ...] = ("device", "end to end")

MIN_ROUNDS = 10
# Fewer if rounds take long: the range of five samples still covers the median at 94 %. Such a
# result never counts as settled.
FEWEST_ROUNDS = 5
MAX_ROUNDS = 500
# One candidate's part of a round: long for the clock's resolution, short for the machine's drift.
ROUND_SECONDS = 0.02
WARMUP_SECONDS = 0.1
# Above this, cold caches do not matter to an iteration.
LONG_SECONDS = 0.2
# Settled: the 95 % interval of the median reaches at most this part of it to either side.
SETTLED = 0.02
_RESAMPLES = 1000
# A percentile is recorded only if at least this many samples lie beyond it.
_BEYOND = 10


@dataclass(frozen=True)
class Candidate:
    """A session to be timed on given inputs."""

    name: str
    session: Session
    feeds: Feeds


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Timing:
    """The time of one inference at one boundary.

    Attributes:
        seconds: Median over rounds of the rounds' medians, in seconds.
        ratio: The baseline's time divided by this one, paired by round: above 1 is faster.
        rounds: Number of rounds.
        iterations: Number of iterations over all rounds.
        percentiles: Seconds by percentile ("p99"), over all iterations; only percentiles with
            enough samples beyond them.
        settled: The interval became narrow enough before the budget was spent.
    """

    name: str
    boundary: Boundary
    seconds: Interval
    ratio: Interval
    rounds: int
    iterations: int
    percentiles: dict[str, float]
    settled: bool


def measure(
    candidates: Sequence[Candidate],
    *,
    budget: float,
    seed: int,
    progress: Callable[[float], None] = lambda _seconds: None,
) -> list[Timing]:
    """Times candidates side by side at both boundaries; the first is the ratios' baseline.

    Args:
        budget: Seconds for all of them together. A result that has not settled by then has
            `settled` False.
        seed: Seed of the order within rounds and of the bootstrap.
        progress: Called after every round with the seconds it took.
    """
    order = random.Random(seed)  # noqa: S311 - no secret
    pairs = [(candidate, boundary) for boundary in BOUNDARIES for candidate in candidates]
    runs = [_clocked(candidate, boundary) for candidate, boundary in pairs]
    plans = [_plan(run) for run in runs]
    samples: list[list[float]] = [[] for _ in runs]
    every: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    collecting = gc.isenabled()
    gc.disable()
    try:
        for number in range(1, MAX_ROUNDS + 1):
            began = time.perf_counter()
            for index in order.sample(range(len(runs)), len(runs)):
                counted, spare = plans[index]
                times = runs[index](spare + counted)[spare:]
                samples[index].append(float(np.median(times)))
                every[index].extend(times)
            progress(time.perf_counter() - began)
            spent = time.perf_counter() - start
            if number >= MIN_ROUNDS and (spent >= budget or all(map(_settled, samples))):
                break
            if number >= FEWEST_ROUNDS and spent >= 2 * budget:
                break
    finally:
        if collecting:
            gc.enable()
    medians = np.array(samples)
    return [
        Timing(
            name=candidate.name,
            boundary=boundary,
            seconds=bootstrap(medians[index], seed),
            ratio=bootstrap(medians[index - index % len(candidates)] / medians[index], seed),
            rounds=len(medians[index]),
            iterations=len(every[index]),
            percentiles=_percentiles(every[index]),
            settled=_settled(samples[index]),
        )
        for index, (candidate, boundary) in enumerate(pairs)
    ]


def bootstrap(samples: np.ndarray[Any, Any], seed: int) -> Interval:
    """Returns the median of samples `[count]` and its 95 % percentile bootstrap interval.

    Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.choice(samples, (_RESAMPLES, len(samples)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return Interval(float(np.median(samples)), float(low), float(high))


def _settled(samples: list[float]) -> bool:
    """Whether the interval of the median is narrow enough, by order statistics.

    Conover, Practical Nonparametric Statistics (3rd ed.), section 3.2: the ranks
    n/2 -+ 0.98 sqrt(n) bound the median at 95 %. Far cheaper than a bootstrap every round.
    """
    count = len(samples)
    if count < MIN_ROUNDS:
        return False
    ranked = sorted(samples)
    reach = 0.98 * math.sqrt(count)
    low = ranked[max(0, math.floor(count / 2 - reach))]
    high = ranked[min(count - 1, math.ceil(count / 2 + reach))]
    middle = ranked[count // 2]
    return max(high - middle, middle - low) <= SETTLED * middle


def _percentiles(times: list[float]) -> dict[str, float]:
    known = [q for q in (50, 90, 95, 99, 99.9) if len(times) * (1 - q / 100) >= _BEYOND]
    return {f"p{q:g}": float(np.percentile(times, q)) for q in known}


def _plan(run: Callable[[int], list[float]]) -> tuple[int, int]:
    """Warms a candidate up; returns how many iterations of a round count, and how many do not.

    The first one does not count, since it brings code and data back into the caches, unless
    iterations take so long that this does not matter.
    """
    run(1)  # may compile something
    deadline = time.perf_counter() + WARMUP_SECONDS
    times = run(1)
    while time.perf_counter() < deadline:
        times = run(2)
    fastest = max(min(times), 1e-9)
    return max(1, min(1000, round(ROUND_SECONDS / fastest))), int(fastest < LONG_SECONDS)


def _clocked(candidate: Candidate, boundary: Boundary) -> Callable[[int], list[float]]:
    """Returns a function that runs a candidate n times and returns n durations in seconds."""
    session, feeds = candidate.session, candidate.feeds
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

"""Many ways to run a model, measured in turns; those that others beat surely drop out early."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from engines.contract import Feeds, Session
from pipeline.benchmarking import intervals
from pipeline.benchmarking.clock import NARROW
from pipeline.benchmarking.intervals import Interval
from pipeline.benchmarking.load import turn

# A way's turn in a round, and what goes before it and does not count: threads of another engine
# may still spin, and caches fill.
TURN_SECONDS = 0.03
RUN_IN_SECONDS = 0.01
# Rounds after which a way may drop out. With fewer than `intervals.FEWEST`, an interval is but the
# range of what was seen, and another way has to be this many times as good. After two rounds, a
# sweep of 24 ways dropped the best in a quarter of simulated runs with bursts of 0.3 s, beginning
# at a fifth of the turns, in which everything took three times as long; after four, in 4 %, and
# what was left was 6 % slower.
_FIRST_LOOK = 4
_FAR = 1.5


@dataclass(frozen=True)
class Way:
    """One way to run a model: sessions of an engine, each with a client, and a batch size.

    Attributes:
        name: How results of other ways speak of it.
        sessions: As many as requests are served at a time.
        rows: Rows of `feeds`.
        accuracy: The part of the test images that it classifies right; None if not known.
    """

    name: str
    sessions: Sequence[Session]
    feeds: Feeds
    rows: int
    accuracy: float | None


@dataclass(frozen=True)
class Result:
    """What was measured of a way.

    Attributes:
        latency: The typical median of a turn, in seconds; None if it failed before its first turn
            ended.
        throughput: Rows in each second.
        percentiles: Seconds by percentile ("p99"), those that are known.
        beaten_by: The way that is surely quicker and serves more, without being less accurate; this
            one dropped out then. "" if none does.
        failure: Why it failed, or "".
    """

    latency: Interval | None
    throughput: Interval | None
    percentiles: dict[str, Interval]
    turns: int
    requests: int
    beaten_by: str = ""
    failure: str = ""


@dataclass
class _Entrant:
    """A way and what has been measured of it."""

    way: Way
    index: int
    medians: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    beaten_by: str = ""
    failure: str = ""

    def turn(self) -> None:
        way = self.way
        times, self.failure = turn(
            way.sessions, way.feeds, warm_up=RUN_IN_SECONDS, seconds=TURN_SECONDS
        )
        if not self.failure:
            self.medians.append(float(np.median(times)))
            # Each client always has one request under way.
            self.rates.append(len(way.sessions) * way.rows / float(np.mean(times)))
            self.times += times

    @property
    def result(self) -> Result:
        return Result(
            latency=intervals.location(np.array(self.medians)) if self.medians else None,
            throughput=intervals.location(np.array(self.rates)) if self.rates else None,
            percentiles=intervals.percentiles(self.times),
            turns=len(self.medians),
            requests=len(self.times),
            beaten_by=self.beaten_by,
            failure=self.failure,
        )


def sweep(
    ways: Sequence[Way],
    *,
    budget: float,
    seed: int,
    prune: bool = True,
    progress: Callable[[float, int], None] = lambda _seconds, _left: None,
    running: Callable[[int], None] = lambda _index: None,
) -> list[Result]:
    """Measures ways in rounds, in each of which every way that is left has a turn.

    It ends when all intervals of those that are left are narrow, or when the budget is spent and
    they have had `intervals.FEWEST` turns each.

    Args:
        budget: In seconds.
        seed: Seed of the order within rounds.
        prune: Drop ways that others beat surely.
        progress: Called after every round with its seconds and the number of ways that are left.
        running: Called with the index of a way before its turn.
    """
    order = random.Random(seed)  # noqa: S311 - no secret
    entrants = [_Entrant(way, index) for index, way in enumerate(ways)]
    left, start = list(entrants), time.perf_counter()
    number = 0
    while left:
        number += 1
        began = time.perf_counter()
        for entrant in order.sample(left, len(left)):
            running(entrant.index)
            entrant.turn()
        left = [entrant for entrant in left if not entrant.failure]
        results = [entrant.result for entrant in left]
        if prune and number >= _FIRST_LOOK:
            factor = 1.0 if number >= intervals.FEWEST else _FAR
            for own, result in zip(left, results, strict=True):
                own.beaten_by = next(
                    (
                        other.way.name
                        for other, better in zip(left, results, strict=True)
                        if other is not own and _beats(other, better, own, result, factor)
                    ),
                    "",
                )
            left = [entrant for entrant in left if not entrant.beaten_by]
        progress(time.perf_counter() - began, len(left))
        if number < intervals.FEWEST:
            continue
        if time.perf_counter() - start >= budget or all(map(_narrow, results)):
            break
    return [entrant.result for entrant in entrants]


def _narrow(result: Result) -> bool:
    return all(
        interval is not None and interval.reach <= NARROW
        for interval in (result.latency, result.throughput)
    )


def _beats(one: _Entrant, better: Result, other: _Entrant, worse: Result, factor: float) -> bool:
    """Whether one way is surely so many times as quick as another, and serves as much more."""
    if other.way.accuracy is not None and (one.way.accuracy or 0.0) < other.way.accuracy:
        return False
    if better.throughput is None or worse.throughput is None:
        return False
    if better.throughput.low <= factor * worse.throughput.high:
        return False
    # Of the tail, what is known of both.
    shared = [name for name in better.percentiles if name in worse.percentiles]
    pairs = [(better.latency, worse.latency)]
    pairs += [(better.percentiles[name], worse.percentiles[name]) for name in shared[-1:]]
    return all(quick and slow and factor * quick.high < slow.low for quick, slow in pairs)

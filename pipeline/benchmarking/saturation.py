"""The largest rate of requests that sessions bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engines.contract import Feeds, Session
from pipeline.benchmarking.intervals import FEWEST
from pipeline.benchmarking.load import LATE, Served, arrivals

# Bisection ends when it knows the rate to 1/2^STEPS of the throughput.
STEPS = 5
# A p99 needs some hundreds of requests; those that queue behind one another know less.
P99_REQUESTS = 1000


@dataclass(frozen=True)
class Saturation:
    """The largest rate that sessions bear.

    Attributes:
        rate: The largest rate that was borne, in requests/s; 0 if none was.
        refused: The smallest rate that was not borne, or the throughput that the search began at.
        runs: What each rate gave, in the order it was tried.
    """

    rate: float
    refused: float
    runs: tuple[Served, ...]

    @property
    def failure(self) -> str:
        """Why a session failed, which ended the search; "" if none did."""
        return self.runs[-1].failure if self.runs else ""


def saturation(
    sessions: Sequence[Session],
    feeds: Feeds,
    *,
    throughput: float,
    seconds: float,
    seed: int,
    rows: int = 1,
    p99: float | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Saturation:
    """Finds the largest rate at which the queue does not grow, by bisection.

    Args:
        sessions: At least one.
        feeds: The inputs of every request.
        throughput: Requests/s of the same sessions with clients that wait, from `closed`. They
            bear no more than that.
        seconds: The time that is measured at each rate.
        seed: Seed of the arrivals.
        rows: Rows of `feeds`.
        p99: The p99 of the latency must be at most so many seconds, too. The measured time is then
            long enough for `P99_REQUESTS`.
        progress: Called after each rate.
    """
    borne, refused = 0.0, throughput
    runs: list[Served] = []
    for _ in range(STEPS):
        rate = (borne + refused) / 2
        served = arrivals(
            sessions,
            feeds,
            rate=rate,
            seconds=seconds,
            seed=seed,
            rows=rows,
            fewest=FEWEST if p99 is None else P99_REQUESTS,
            bound=p99,
        )
        runs.append(served)
        progress()
        if served.failure:
            break
        if bears(served):
            borne = rate
        else:
            refused = rate
    return Saturation(borne, refused, tuple(runs))


def bears(served: Served) -> bool:
    """Whether a rate is borne: the queue does not grow, and the bound on p99, if any, is kept."""
    return not (served.saturated or served.failure) and served.late <= LATE

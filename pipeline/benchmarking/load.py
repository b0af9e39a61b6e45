"""Sessions under load: clients that wait for each answer, and arrivals that wait for nobody.

Each session has a thread, and `Session.run` is what a request costs: numpy to numpy. Vendor
libraries release Python's lock while they compute, so sessions run at the same time.
"""

from __future__ import annotations

import itertools
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engines.contract import Feeds, Session
from engines.errors import UsageError
from pipeline.benchmarking import intervals
from pipeline.benchmarking.clients import LOOK, Clients, Meter, clock, hung
from pipeline.benchmarking.intervals import Interval

# This part of the measured time comes before it and does not count. In it caches fill, and a queue
# gets from empty to its usual length.
WARM_UP = 0.1
# The part of the requests that may take longer than a p99.
LATE = 0.01
# A schedule is drawn as a whole, and no engine here serves as many requests in one run.
MOST_REQUESTS = 2_000_000


@dataclass(frozen=True)
class Served:
    """What sessions did under a load.

    Attributes:
        concurrency: Number of sessions.
        rows: Rows of one request.
        requests: Requests that completed in the measured time.
        seconds: The measured time.
        throughput: Completed requests in each second of the measured time; None if fewer than two
            completed.
        latency: Seconds by percentile ("p99"), with intervals; only those that are known. From
            the scheduled arrival if there is a rate, else from the call. Empty if saturated, or if
            late requests ended the run.
        cpu_seconds: CPU time of this process for each request.
        others: The part of the CPUs that other processes took meanwhile, or None.
        failure: Why a session failed, which ended the run; "" if none did.
        rate: Requests offered in each second; None for clients that wait for their answers.
        load: The work offered, as a part of what the sessions can do: rate x mean time in which a
            request occupies a session / sessions.
        waiting: Requests that had arrived, in the warm-up or after it, and had not begun at the end
            of the measured time.
        waking: Median of the seconds from a request's arrival until a free session began it: the
            operating system's time to wake a thread up. It is part of the latency.
        late: The part of the requests that took longer than the bound; 0 without one.
        saturated: The queue grows: the load is at least 1, or the queue that was left took longer
            than the measured time to serve.
    """

    concurrency: int
    rows: int
    requests: int
    seconds: float
    throughput: Interval | None
    latency: dict[str, Interval]
    cpu_seconds: float
    others: float | None
    failure: str = ""
    rate: float | None = None
    load: float | None = None
    waiting: int = 0
    waking: float | None = None
    late: float = 0.0
    saturated: bool = False

    @property
    def rows_per_second(self) -> Interval | None:
        """Completed rows in each second; None without a throughput."""
        rate, rows = self.throughput, self.rows
        return rate and Interval(rate.value * rows, rate.low * rows, rate.high * rows)


def closed(
    sessions: Sequence[Session],
    feeds: Feeds,
    *,
    seconds: float,
    rows: int = 1,
    bound: float | None = None,
) -> Served:
    """Serves one client for each session; each sends a request when its last one has returned.

    The run goes on until the sessions have completed `intervals.FEWEST` requests each, on average.

    Args:
        sessions: At least one.
        feeds: The inputs of every request.
        seconds: The time that is measured, after a warm-up.
        rows: Rows of `feeds`.
        bound: A latency in seconds; `Served.late` is the part of the requests above it.

    Raises:
        HungError: A session does not return.
    """
    spans: list[tuple[float, float]] = []  # of all threads: append is atomic
    clients = Clients(sessions, feeds)

    def client(session: Session) -> None:
        while not clients.done.is_set():
            began = clock()
            session.run(feeds)
            spans.append((began, clock()))

    with clients.working(client):
        clients.start()
        clients.wait_until(clock() + WARM_UP * seconds)
        meter, before = Meter(), len(spans)
        clients.wait_until(meter.began + seconds)
        seen, moment = len(spans), clock()
        while len(spans) - before < intervals.FEWEST * len(sessions) and not clients.done.is_set():
            if len(spans) > seen:
                seen, moment = len(spans), clock()
            elif clock() - moment > clients.patience:
                raise hung(clients.patience)
            time.sleep(LOOK)
        meter.stop()
    counted = [span for span in spans if meter.began < span[1] <= meter.ended]
    ends = np.sort([ended - meter.began for _, ended in counted])
    times = [ended - began for began, ended in counted]
    return Served(
        concurrency=len(sessions),
        rows=rows,
        requests=len(counted),
        seconds=meter.seconds,
        throughput=intervals.rate(ends, meter.seconds, len(sessions)),
        latency=intervals.percentiles(times),
        cpu_seconds=meter.cpu_seconds / max(1, len(counted)),
        others=meter.others,
        failure=clients.failure,
        late=_late(times, bound),
    )


def turn(
    sessions: Sequence[Session], feeds: Feeds, *, warm_up: float, seconds: float
) -> tuple[list[float], str]:
    """Serves one client for each session for a moment.

    Every request that begins in the measured time counts, whenever it ends; each client has one at
    least.

    Args:
        warm_up: Seconds that do not count; each session also runs once before them.
        seconds: The time that is measured.

    Returns:
        The seconds of each request, and why a session failed, or "".

    Raises:
        HungError: A session does not return.
    """
    times: list[float] = []  # of all threads: append is atomic
    clients = Clients(sessions, feeds)

    def client(session: Session) -> None:
        start = clients.began + warm_up
        counted = False
        while (began := clock()) < start + seconds or not counted:
            session.run(feeds)
            if counted := began >= start:
                times.append(clock() - began)

    with clients.working(client):
        clients.start()
        clients.join(warm_up + seconds)
    return times, clients.failure


@dataclass(frozen=True)
class _Request:
    """The moments of one request.

    Attributes:
        arrival: When it was scheduled to arrive.
        taken: When a session was free for it; that may be before it arrived.
    """

    arrival: float
    taken: float
    began: float
    ended: float

    @property
    def occupied(self) -> float:
        """Seconds for which it kept a session from other requests."""
        return self.ended - max(self.arrival, self.taken)

    @property
    def waited_for(self) -> bool:
        """Whether a session was free when it arrived."""
        return self.taken < self.arrival


def schedule(rate: float, seconds: float, seed: int) -> list[float]:
    """Returns moments of Poisson arrivals, in seconds from 0, in rising order.

    Args:
        rate: Mean arrivals in each second.
        seconds: They end at this time.

    Raises:
        UsageError: There are more than `MOST_REQUESTS`.
    """
    count = rate * seconds
    if count > MOST_REQUESTS:
        raise UsageError(
            f"{rate:g} requests/s for {seconds:g} s are more than {MOST_REQUESTS:,} requests",
            "give a lower --rate, or a shorter --duration",
        )
    random = np.random.default_rng(seed)
    # Given their number, the moments of a Poisson process are uniform.
    moments: list[float] = np.sort(random.uniform(0, seconds, random.poisson(count))).tolist()
    return moments


def arrivals(
    sessions: Sequence[Session],
    feeds: Feeds,
    *,
    rate: float,
    seconds: float,
    seed: int,
    rows: int = 1,
    fewest: int = intervals.FEWEST,
    bound: float | None = None,
    to_the_end: bool = False,
    latencies: list[float] | None = None,
) -> Served:
    """Serves requests that arrive at random moments, however long the queue is.

    The moments are drawn beforehand, and latency counts from them: a request that a busy session
    delays has waited, though no client was there to notice (no coordinated omission). Requests
    are served in the order of their arrival, each by the session that is free first. If the queue
    grows, what is left of it after the last arrival is not served.

    Args:
        sessions: At least one.
        feeds: The inputs of every request.
        rate: Mean arrivals in each second, Poisson distributed.
        seconds: The time that is measured, after a warm-up.
        seed: Seed of the moments.
        rows: Rows of `feeds`.
        fewest: Measure longer, until so many requests are expected.
        bound: The latency in seconds that a p99 is to keep.
        to_the_end: Go on when the p99 cannot keep the bound any more.
        latencies: Receives the latency of each request, in seconds.

    Raises:
        HungError: A session does not return.
    """
    seconds = max(seconds, fewest / rate)
    warm_up = WARM_UP * seconds
    moments = schedule(rate, warm_up + seconds, seed)
    numbers = itertools.count()  # next() is atomic
    requests: list[_Request] = []  # of all threads: append is atomic
    late: list[int] = []  # of all threads: append is atomic
    allowed = LATE * sum(moment > warm_up for moment in moments)
    clients = Clients(sessions, feeds)

    def client(session: Session) -> None:
        # A session takes the next request before it arrives, and waits for it. That serves the
        # queue in order, as a dispatcher would, without the time to hand a request over.
        while not clients.done.is_set() and (number := next(numbers)) < len(moments):
            arrival, taken = clients.began + moments[number], clock()
            if not clients.sleep_until(arrival):
                return
            began = clock()
            session.run(feeds)
            requests.append(_Request(arrival, taken, began, ended := clock()))
            if bound is not None and ended - arrival > bound and moments[number] > warm_up:
                late.append(number)
                if len(late) > allowed and not to_the_end:
                    clients.done.set()

    def load() -> float:
        occupied = [request.occupied for request in requests]
        return rate * float(np.mean(occupied)) / len(sessions) if occupied else 0.0

    def dependence() -> float:
        occupied = np.array([request.occupied for request in requests] or [1.0])
        return intervals.queue_dependence(load(), float(np.var(occupied) / np.mean(occupied) ** 2))

    with clients.working(client):
        clients.start()
        clients.wait_until(clients.began + warm_up)
        meter = Meter()
        clients.wait_until(clients.began + warm_up + seconds)
        meter.stop()
        begun = sum(request.began <= meter.ended for request in requests)
        if not clients.done.is_set() and 0 < load() < 1:
            clients.join(seconds)
        cut_short = clients.done.is_set()
    arrived = bisect_right(moments, meter.ended - clients.began)
    offered = load()
    unserved = len(requests) < len(moments) and not cut_short
    saturated = not clients.failure and (offered >= 1 or unserved)
    requests.sort(key=lambda request: request.arrival)
    counted = [request for request in requests if request.arrival > clients.began + warm_up]
    ends = np.sort([request.ended for request in requests]) - meter.began
    ends = ends[(ends > 0) & (ends <= meter.seconds)]
    waking = [request.began - request.arrival for request in requests if request.waited_for]
    taken = [request.ended - request.arrival for request in counted]
    if latencies is not None:
        latencies += taken
    return Served(
        concurrency=len(sessions),
        rows=rows,
        requests=len(ends),
        seconds=meter.seconds,
        throughput=intervals.rate(ends, meter.seconds, len(sessions)),
        latency={} if saturated or cut_short else intervals.percentiles(taken, dependence()),
        cpu_seconds=meter.cpu_seconds / max(1, len(ends)),
        others=meter.others,
        failure=clients.failure,
        rate=rate,
        load=offered,
        waiting=max(0, arrived - begun - len(sessions)),
        waking=float(np.median(waking)) if waking else None,
        late=_late(taken, bound),
        saturated=saturated,
    )


def _late(times: Sequence[float], bound: float | None) -> float:
    """Returns the part of some times that is above a bound; 0 without one."""
    if bound is None:
        return 0.0
    return sum(time > bound for time in times) / max(1, len(times))

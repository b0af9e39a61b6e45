"""Sessions under load: clients that wait for each answer, and arrivals that wait for nobody.

Each session has a thread, and `Session.run` is what a request costs: numpy to numpy. Vendor
libraries release Python's lock while they compute, so sessions run at the same time.
"""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.contract import Feeds, Session
from engines.errors import DeployError, UsageError
from pipeline.benchmarking import intervals
from pipeline.benchmarking.contention import Others
from pipeline.benchmarking.intervals import Interval

# This part of the measured time comes before it and does not count. In it caches fill, and a queue
# gets from empty to its usual length.
WARM_UP = 0.1
# The part of the requests that may take longer than a p99.
LATE = 0.01
# A schedule is drawn as a whole, and no engine here serves as many requests in one run.
MOST_REQUESTS = 2_000_000
# How often a thread that waits looks whether the run has ended, in seconds.
_LOOK = 0.05

_clock = time.perf_counter


@dataclass(frozen=True)
class Served:
    """What sessions did under a load.

    Attributes:
        concurrency: Number of sessions.
        rows: Rows of one request.
        requests: Requests that completed in the measured time.
        seconds: The measured time.
        throughput: Completed requests in each second; None if none completed.
        latency: Seconds by percentile ("p99"), with intervals; only those that are known. From
            the scheduled arrival if there is a rate, else from the call. Empty if saturated.
        cpu_seconds: CPU time of this process for each request.
        others: The part of the CPUs that other processes took meanwhile, or None.
        failure: Why a session failed, which ended the run; "" if none did.
        rate: Requests offered in each second; None for clients that wait for their answers.
        load: The work offered, as a part of what the sessions can do: rate x mean time in which a
            request occupies a session / sessions.
        waiting: Requests that had arrived and not begun when the last one arrived.
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
        """Completed rows in each second; None if no request completed."""
        rate, rows = self.throughput, self.rows
        return rate and Interval(rate.value * rows, rate.low * rows, rate.high * rows)


def closed(sessions: Sequence[Session], feeds: Feeds, *, seconds: float, rows: int = 1) -> Served:
    """Serves one client for each session; each sends a request when its last one has returned.

    The run goes on until the sessions have completed `intervals.FEWEST` requests each, on average.

    Args:
        sessions: At least one.
        feeds: The inputs of every request.
        seconds: The time that is measured, after a warm-up.
        rows: Rows of `feeds`.
    """
    spans: list[tuple[float, float]] = []  # of all threads: append is atomic
    crew = _Crew(sessions, feeds)

    def client(session: Session) -> None:
        while not crew.done.is_set():
            began = _clock()
            session.run(feeds)
            spans.append((began, _clock()))

    with crew.working(client):
        crew.start()
        crew.sleep_until(_clock() + WARM_UP * seconds)
        meter, before = _Meter(), len(spans)
        crew.sleep_until(meter.began + seconds)
        while len(spans) - before < intervals.FEWEST * len(sessions) and not crew.done.is_set():
            time.sleep(_LOOK)
        meter.stop()
    counted = [span for span in spans if meter.began < span[1] <= meter.ended]
    return Served(
        concurrency=len(sessions),
        rows=rows,
        requests=len(counted),
        seconds=meter.seconds,
        throughput=_throughput([ended for _, ended in counted], meter.began, len(sessions)),
        latency=intervals.percentiles([ended - began for began, ended in counted]),
        cpu_seconds=meter.cpu_seconds / max(1, len(counted)),
        others=meter.others,
        failure=crew.failure,
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
    """
    times: list[float] = []  # of all threads: append is atomic
    crew = _Crew(sessions, feeds)

    def client(session: Session) -> None:
        start = crew.began + warm_up
        counted = False
        while (began := _clock()) < start + seconds or not counted:
            session.run(feeds)
            if counted := began >= start:
                times.append(_clock() - began)

    with crew.working(client):
        crew.start()
        crew.join()
    return times, crew.failure


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
        bound: The latency in seconds that a p99 is to keep. The run ends when that is impossible.
    """
    seconds = max(seconds, fewest / rate)
    warm_up = WARM_UP * seconds
    moments = schedule(rate, warm_up + seconds, seed)
    numbers = itertools.count()  # next() is atomic
    requests: list[_Request] = []  # of all threads: append is atomic
    late: list[int] = []
    allowed = LATE * sum(moment > warm_up for moment in moments)
    crew = _Crew(sessions, feeds)

    def client(session: Session) -> None:
        # A session takes the next request before it arrives, and waits for it. That serves the
        # queue in order, as a dispatcher would, without the time to hand a request over.
        while not crew.done.is_set() and (number := next(numbers)) < len(moments):
            arrival, taken = crew.began + moments[number], _clock()
            if not crew.sleep_until(arrival):
                return
            began = _clock()
            session.run(feeds)
            requests.append(_Request(arrival, taken, began, ended := _clock()))
            if bound is not None and ended - arrival > bound and moments[number] > warm_up:
                late.append(number)
                if len(late) > allowed:
                    crew.done.set()

    def load() -> float:
        occupied = [request.occupied for request in requests]
        return rate * float(np.mean(occupied)) / len(sessions) if occupied else 0.0

    with crew.working(client):
        crew.start()
        crew.sleep_until(crew.began + warm_up)
        meter = _Meter()
        crew.sleep_until(crew.began + warm_up + seconds)
        meter.stop()
        begun = sum(request.began <= meter.ended for request in requests)
        if not crew.done.is_set() and 0 < load() < 1:
            crew.join(seconds)
    offered = load()
    unserved = len(requests) < len(moments) and len(late) <= allowed
    saturated = not crew.failure and (offered >= 1 or unserved)
    counted = [request for request in requests if request.arrival > crew.began + warm_up]
    ends = [request.ended for request in requests if meter.began < request.ended <= meter.ended]
    waking = [request.began - request.arrival for request in requests if request.waited_for]
    return Served(
        concurrency=len(sessions),
        rows=rows,
        requests=len(ends),
        seconds=meter.seconds,
        throughput=_throughput(ends, meter.began, len(sessions)),
        latency=intervals.percentiles(
            [] if saturated else [request.ended - request.arrival for request in counted]
        ),
        cpu_seconds=meter.cpu_seconds / max(1, len(ends)),
        others=meter.others,
        failure=crew.failure,
        rate=rate,
        load=offered,
        waiting=max(0, len(moments) - begun - len(sessions)),
        waking=float(np.median(waking)) if waking else None,
        late=len(late) / max(1, len(counted)),
        saturated=saturated,
    )


class _Meter:
    """What a stretch of time cost."""

    def __init__(self) -> None:
        self._others = Others()
        self._cpu = time.process_time()
        self.began = self.ended = _clock()
        self.cpu_seconds = 0.0
        self.others: float | None = None

    def stop(self) -> None:
        """Ends the stretch."""
        self.ended = _clock()
        self.cpu_seconds = time.process_time() - self._cpu
        self.others = self._others.part()

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.began


class _Crew:
    """The threads of a run, one for each session.

    Attributes:
        began: When they started to work.
        done: Set when they are to stop, and when one of them has failed.
        failure: The message of the first DeployError that a session raised, or "".
    """

    def __init__(self, sessions: Sequence[Session], feeds: Feeds) -> None:
        self._sessions, self._feeds = sessions, feeds
        self._threads: list[threading.Thread] = []
        self._errors: list[Exception] = []
        self._warm = threading.Semaphore(0)
        self._go = threading.Event()
        self.began = 0.0
        self.done = threading.Event()

    @property
    def failure(self) -> str:
        messages = (error.message for error in self._errors if isinstance(error, DeployError))
        return next(messages, "")

    @contextmanager
    def working(self, client: Callable[[Session], None]) -> Iterator[None]:
        """Opens the threads, each of which runs its session once; ends them after the body.

        Raises:
            Exception: A session raised something other than a DeployError.
        """
        collecting = gc.isenabled()
        gc.disable()
        try:
            for session in self._sessions:
                thread = threading.Thread(target=self._work, args=(session, client), daemon=True)
                self._threads.append(thread)
                thread.start()
            for _ in self._sessions:
                self._warm.acquire()
            yield
        finally:
            self.done.set()
            self._go.set()
            self.join()
            if collecting:
                gc.enable()
        for error in self._errors:
            if not isinstance(error, DeployError):
                raise error

    def start(self) -> None:
        """Lets the threads call their clients."""
        self.began = _clock()
        self._go.set()

    def join(self, seconds: float | None = None) -> None:
        """Waits for the threads to end, at most so many seconds."""
        deadline = None if seconds is None else _clock() + seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0, deadline - _clock()))

    def sleep_until(self, moment: float) -> bool:
        """Sleeps until a moment of `_clock`; returns False, at once or soon, if work is done."""
        while (left := moment - _clock()) > 0 and not self.done.is_set():
            time.sleep(min(left, _LOOK))
        return not self.done.is_set()

    def _work(self, session: Session, client: Callable[[Session], None]) -> None:
        _wake_on_time()
        try:
            try:
                session.run(self._feeds)  # may compile something
            finally:
                self._warm.release()
            self._go.wait()
            client(session)
        except Exception as error:
            self._errors.append(error)
            self.done.set()


def _wake_on_time() -> None:
    """Asks Linux to end this thread's sleeps on time; by default it may be 50 us late."""
    with suppress(OSError):
        Path(f"/proc/{threading.get_native_id()}/timerslack_ns").write_text("1")


def _throughput(ends: list[float], began: float, concurrency: int) -> Interval | None:
    """Returns completions in each second, from blocks of as many completions each.

    Args:
        ends: When requests completed.
        began: The time before the first one.
        concurrency: Requests that may complete at the same moment: no block has fewer.
    """
    blocks = min(intervals.BLOCKS, len(ends) // concurrency)
    if not blocks:
        return None
    moments = np.array([began, *sorted(ends)])
    edges = np.linspace(0, len(ends), blocks + 1).round().astype(int)
    return intervals.location(np.diff(edges) / np.diff(moments[edges]))

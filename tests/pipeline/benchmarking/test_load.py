"""Sessions under load, with sessions that sleep for a known time, and with real ones."""

import copy
import heapq
import math
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest

import engines
from engines.contract import Feeds, OpenOptions, Outputs, Session, TensorSpec
from engines.errors import DeployError, UsageError
from pipeline.benchmarking import clients
from pipeline.benchmarking.clients import HungError
from pipeline.benchmarking.load import arrivals, closed, schedule, turn
from pipeline.benchmarking.load_curve import Plan, measure, measure_apart
from pipeline.benchmarking.saturation import STEPS, bears, saturation
from pipeline.workflow.runner import Store
from tests.timed import timed

SERVICE = 0.002


@dataclass
class Sleeper:
    """A session that sleeps, at times for `stall` seconds more, and fails after `lasts` runs."""

    seconds: float = SERVICE
    stalls_every: float = math.inf
    stalls: float = math.inf
    stall: float = 0.0
    lasts: float = math.inf
    error: type[Exception] = DeployError
    runs: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device: str = "cpu"
    batch: tuple[int, int] | None = None
    stream: int | None = None

    def run(self, feeds: Feeds) -> Outputs:
        self.runs += 1
        if self.runs > self.lasts:
            raise self.error("the engine has died")
        began = time.perf_counter()
        stalled = (
            self.runs % self.stalls_every == 0 and self.runs <= self.stalls * self.stalls_every
        )
        time.sleep(self.seconds + stalled * self.stall)
        self.spans.append((began, time.perf_counter()))
        return {}

    def bind(self, feeds: Feeds) -> None: ...

    def launch(self) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


def throughput(count: int) -> float:
    served = closed([Sleeper() for _ in range(count)], {}, seconds=0.3)
    assert served.throughput is not None
    return served.throughput.value


def waits(moments: Sequence[float], services: Iterable[float], servers: int = 1) -> np.ndarray:
    """Returns how long each arrival waits for the first of some servers to be free."""
    free, result = [0.0] * servers, []
    for moment, service in zip(moments, services, strict=False):
        begun = max(moment, free[0])
        heapq.heapreplace(free, begun + service)
        result.append(begun - moment)
    return np.array(result)


@timed
def test_sessions_that_only_wait_add_their_throughputs() -> None:
    for count in (1, 4):
        assert 0.7 * count / SERVICE < throughput(count) <= 1.02 * count / SERVICE


@timed
def test_a_request_counts_as_many_rows_as_it_has() -> None:
    served = closed([Sleeper()], {}, seconds=0.1, rows=8)
    assert served.throughput is not None
    assert served.rows_per_second is not None
    assert served.rows_per_second.value == pytest.approx(8 * served.throughput.value)
    assert served.requests == pytest.approx(served.seconds * served.throughput.value, rel=0.1)


def test_what_is_served_is_requests_by_time_with_stalls_in_it() -> None:
    stalling = [Sleeper(stalls_every=20, stall=0.04)]
    waiting = closed(stalling, {}, seconds=0.5)
    # It hangs once, for half of the measured time.
    hanging = arrivals(
        [Sleeper(stalls_every=60, stalls=1, stall=0.25)], {}, rate=200, seconds=0.5, seed=0
    )
    for served in (waiting, hanging):
        assert served.throughput is not None
        assert served.throughput.value == pytest.approx(served.requests / served.seconds)
        assert served.throughput.low < served.throughput.value < served.throughput.high


@timed
def test_few_long_requests_are_waited_for() -> None:
    served = closed([Sleeper(0.1), Sleeper(0.1)], {}, seconds=0.1)
    assert served.requests >= 2 * 6 - 1
    assert served.throughput is not None
    assert served.throughput.value == pytest.approx(20, rel=0.2)


@pytest.mark.parametrize("offered", [None, 100])
def test_a_session_that_fails_ends_the_run(offered: float | None) -> None:
    sessions = [Sleeper(), Sleeper(lasts=10)]
    began = time.perf_counter()
    if offered is None:
        served = closed(sessions, {}, seconds=60)
    else:
        served = arrivals(sessions, {}, rate=offered, seconds=60, seed=0)
    assert served.failure == "the engine has died"
    assert time.perf_counter() - began < 5


def test_an_error_of_ours_is_no_failure_of_an_engine() -> None:
    with pytest.raises(KeyError):
        closed([Sleeper(lasts=10, error=KeyError)], {}, seconds=60)


@timed
def test_the_measured_time_ends_with_a_run_that_late_requests_end() -> None:
    runs = [
        arrivals([Sleeper(0.0001)], {}, rate=2000, seconds=2, seed=seed, bound=0.00005)
        for seed in range(3)
    ]
    # 40 late requests ended it after 20 ms.
    assert min(run.seconds for run in runs) < 0.04
    assert min(run.waiting for run in runs) < 20


@pytest.mark.parametrize("kind", ["closed", "turn", "arrivals", "first run"])
def test_a_session_that_never_returns_is_not_waited_for(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "PATIENCE", 0.3)
    monkeypatch.setattr(clients, "FIRST_RUN", 0.3)
    monkeypatch.setattr(clients, "GRACE", 0.1)
    session = Sleeper(stalls_every=1 if kind == "first run" else 5, stall=20)
    began = time.perf_counter()
    run = {
        "turn": lambda: turn([Sleeper(), session], {}, warm_up=0, seconds=0.1),
        "arrivals": lambda: arrivals([Sleeper(), session], {}, rate=200, seconds=0.1, seed=0),
    }.get(kind, lambda: closed([session], {}, seconds=0.1))
    with pytest.raises(HungError, match=r"a session has not returned for 0\.3 s") as caught:
        run()
    sent = copy.copy(caught.value)  # made again from its arguments, as by a worker process
    assert (sent.message, sent.hint) == (caught.value.message, caught.value.hint)
    assert time.perf_counter() - began < 5


def opens(engine: str, path: Path, threads: int) -> Session:
    return engines.get(engine).open(path, OpenOptions(threads=threads))


@pytest.mark.slow(3)
@pytest.mark.usefixtures("faulty_engines")
def test_a_library_that_ends_the_process_is_a_failure(built: Store) -> None:
    path = built.root / "lenet/fp32/onnxruntime/engine.onnx"
    feeds = {"image": np.zeros((1, 1, 28, 28), np.uint8)}
    plan = Plan(threads={1: 1}, rates=(), p99=None, seconds=0.1, seed=0)
    crashed, fine = (
        measure_apart(name, partial(partial, opens, name, path), feeds, 1, plan)
        for name in ("segfaulting", "onnxruntime")
    )
    assert "signal 11 (SIGSEGV) ended the process while loading segfaulting" in crashed["failure"]
    assert crashed["closed"] == []
    assert fine["failure"] == ""
    assert fine["saturation"]["rate"] > 0


def test_an_interruption_does_not_wait_for_a_session_that_never_returns() -> None:
    threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        closed([Sleeper(stalls_every=5, stall=20)], {}, seconds=0.1)
    assert time.perf_counter() - began < 5


def test_a_session_that_ends_its_thread_is_not_waited_for() -> None:
    class Leaving(Sleeper):
        def run(self, _feeds: Feeds) -> Outputs:
            raise SystemExit(3)

    with pytest.raises(SystemExit):
        closed([Leaving()], {}, seconds=0.1)


def test_the_first_run_of_a_session_may_fail_too() -> None:
    served = arrivals([Sleeper(lasts=0)], {}, rate=1, seconds=60, seed=0)
    assert (served.failure, served.requests, served.throughput) == ("the engine has died", 0, None)


def test_arrivals_are_poisson() -> None:
    gaps = np.diff(schedule(1000, 200, seed=1))
    assert np.mean(gaps) == pytest.approx(1 / 1000, rel=0.01)
    assert np.std(gaps) == pytest.approx(1 / 1000, rel=0.02)
    assert np.mean(gaps > 2 / 1000) == pytest.approx(math.exp(-2), rel=0.05)
    assert schedule(1000, 1, seed=1) == schedule(1000, 1, seed=1) != schedule(1000, 1, seed=2)
    with pytest.raises(UsageError, match="more than 2,000,000 requests"):
        schedule(1e6, 10, seed=0)


def test_waits_of_one_server_are_those_of_the_formula() -> None:
    # Pollaczek and Khinchine's, for a constant service time.
    load = 0.7
    known = waits(schedule(load / SERVICE, 500, 0), repeat(SERVICE))
    assert np.mean(known) == pytest.approx(load * SERVICE / (2 * (1 - load)), rel=0.05)


@pytest.mark.slow(2)
@timed
def test_latency_is_the_wait_in_the_queue_and_the_service() -> None:
    rate, seconds, session, told = 0.6 / SERVICE, 1, Sleeper(), []
    served = arrivals([session], {}, rate=rate, seconds=seconds, seed=3, latencies=told)
    moments = np.array(schedule(rate, 1.1 * seconds, 3))
    began, ended = np.array(session.spans[1:]).T  # the first one warms up
    origin = np.min(began - moments)  # some request found the session free, and began at once
    latencies = (ended - origin - moments)[moments > 0.1 * seconds]
    assert np.median(latencies) > 1.2 * SERVICE  # there was a queue
    np.testing.assert_allclose(told, latencies, atol=0.0002)
    for name, interval in served.latency.items():
        assert interval.value == np.percentile(told, float(name[1:]))


@pytest.mark.slow(2)
@timed
def test_latency_counts_from_the_scheduled_arrival() -> None:
    def stalling() -> list[Sleeper]:
        return [Sleeper(stalls_every=20, stall=0.03)]

    told: list[float] = []
    arrivals(stalling(), {}, rate=200, seconds=1, seed=0, latencies=told)
    # A quarter of the requests arrived while it stalled, or while it made up for that.
    assert np.percentile(told, 90) > 5 * SERVICE
    # A client that waits for its answer notices one in twenty.
    assert closed(stalling(), {}, seconds=0.5).latency["p90"].value < 2 * SERVICE


@pytest.mark.parametrize(("bound", "kept"), [(0.1, False), (0.5, True)])
@timed
def test_one_stall_is_in_the_latency_of_all_that_queued_behind_it(bound: float, kept: bool) -> None:
    session = Sleeper(stalls_every=100, stall=0.2, stalls=1)
    served = arrivals([session], {}, rate=200, seconds=0.8, seed=0, bound=bound)
    # Half of those that arrived in its 0.2 s waited for more than 0.1 s; three ended the run.
    assert (served.late > 0.01) is not kept
    assert (session.runs < 150) is not kept


@timed
def test_a_run_that_late_requests_end_knows_no_percentiles_and_who_waits() -> None:
    session = Sleeper(stalls_every=100, stall=0.2, stalls=1)
    served = arrivals([session], {}, rate=200, seconds=5, seed=0, bound=0.02)
    assert session.runs < 500
    assert not served.latency  # they chose when to end
    assert served.waiting < 100  # not those that would have arrived later


@pytest.mark.slow(2)
@pytest.mark.parametrize("count", [1, 3])
@timed
def test_the_queue_grows_if_more_arrives_than_is_served(count: int) -> None:
    sessions, capacity = [Sleeper() for _ in range(count)], count / SERVICE
    below, above = (
        arrivals(sessions, {}, rate=part * capacity, seconds=0.4, seed=0) for part in (0.5, 1.4)
    )
    assert (below.saturated, above.saturated) == (False, True)
    assert below.load is not None
    assert 0.5 <= below.load < 0.8
    assert above.load is not None
    assert 1.4 <= above.load < 2
    assert below.latency
    assert not above.latency
    assert above.throughput is not None
    assert 0.7 * capacity < above.throughput.value <= 1.02 * capacity


@timed
def test_a_far_larger_rate_than_is_served_ends_in_time() -> None:
    began = time.perf_counter()
    served = arrivals([Sleeper()], {}, rate=100 / SERVICE, seconds=0.2, seed=0)
    assert served.saturated
    assert served.waiting == pytest.approx(99 / SERVICE * 0.22, rel=0.1)
    assert time.perf_counter() - began < 1


# For searches, since what a busy machine adds to a time may be as long as a short one.
LONG = 0.01


@pytest.mark.slow(3)
@timed
def test_the_largest_rate_that_is_borne_is_the_capacity() -> None:
    sessions, capacity = [Sleeper(LONG), Sleeper(LONG)], 2 / LONG
    limit = saturation(sessions, {}, throughput=1.5 * capacity, seconds=0.5, seed=0)
    assert limit.rate < limit.refused
    assert limit.rate == pytest.approx(capacity, rel=0.15)
    assert len(limit.runs) == STEPS


@pytest.mark.slow(3)
@timed
def test_a_bound_on_p99_lowers_the_rate_that_is_borne(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.benchmarking.saturation.P99_REQUESTS", 100)
    bound, servers = 2 * LONG, 4
    sessions, top = [Sleeper(LONG) for _ in range(servers)], servers / LONG
    limit = saturation(sessions, {}, throughput=top, seconds=0.1, seed=0, p99=bound)
    assert 0 < limit.rate < limit.refused < top
    for run in limit.runs:
        assert run.rate is not None
        assert bears(run) is (run.rate <= limit.rate)
        if bears(run):  # on a busy machine, others may be refused that the formula allows
            moments = schedule(run.rate, 20, 1)
            known = np.percentile(waits(moments, repeat(LONG), servers), 99) + LONG
            assert known < 1.3 * bound


def test_a_search_ends_with_a_session_that_fails() -> None:
    limit = saturation([Sleeper(lasts=20)], {}, throughput=400, seconds=10, seed=0)
    assert (limit.failure, limit.rate, len(limit.runs)) == ("the engine has died", 0, 1)


def test_a_bound_that_no_request_keeps_is_not_searched() -> None:
    plan = Plan({1: 1, 2: 1}, rates=(), p99=SERVICE / 2, seconds=0.1, seed=0)
    advanced: list[None] = []
    result = measure(lambda _: Sleeper(), {}, 1, plan, lambda: advanced.append(None))
    assert not result["arrivals"]
    assert (result["saturation"]["rate"], result["saturation"]["refused"]) == (0, 0)
    assert len(advanced) == plan.runs


@timed
def test_sessions_that_slow_each_other_down_may_keep_a_bound_one_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.benchmarking.saturation.P99_REQUESTS", 20)
    running: list[None] = []

    class Sharing(Sleeper):
        def run(self, feeds: Feeds) -> Outputs:
            running.append(None)
            self.seconds = LONG * len(running)
            try:
                return super().run(feeds)
            finally:
                running.pop()

    plan = Plan({4: 1}, rates=(), p99=3 * LONG, seconds=0.1, seed=0)
    result = measure(lambda _: Sharing(LONG), {}, 1, plan)
    assert result["closed"][0]["late"] > 0.5
    assert len(result["arrivals"]) == STEPS

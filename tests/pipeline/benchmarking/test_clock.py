"""The clock, on sessions of known duration."""

import itertools
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from engines.contract import Feeds, Outputs, TensorSpec
from engines.errors import DeployError
from pipeline.benchmarking import clock as timing


@dataclass
class Clock:
    """A clock that only sessions advance."""

    now: float = 0.0

    def perf_counter(self) -> float:
        return self.now

    def perf_counter_ns(self) -> int:
        return round(self.now * 1e9)


@dataclass
class Timed:
    """A session that takes `launching` seconds on the device and `copying` around it."""

    clock: Clock
    name: str
    launching: float
    copying: float
    log: list[str]
    noise: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    spread: float = 0.0
    drift: float = 0.1
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device: str = "cpu"
    batch: tuple[int, int] | None = None
    stream: int | None = None

    def run(self, feeds: Feeds) -> Outputs:
        self.clock.now += self.copying
        self.launch()
        return {}

    def bind(self, feeds: Feeds) -> None:
        self.log.append(f"bind {self.name}")

    def launch(self) -> None:
        self.log.append(self.name)
        factor = 1 + self.spread * self.noise.random()
        self.clock.now += self.launching * factor * (1 + self.drift * self.clock.now)

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stand_in = Clock()
    fake = SimpleNamespace(
        perf_counter=stand_in.perf_counter, perf_counter_ns=stand_in.perf_counter_ns
    )
    monkeypatch.setattr(timing, "time", fake)
    return stand_in


def candidates(clock: Clock, log: list[str], **more: float) -> list[timing.Candidate]:
    slow = Timed(clock, "slow", 2e-3, 1e-3, log, **more)
    fast = Timed(clock, "fast", 1e-3, 1e-3, log, **more)
    return [timing.Candidate("slow", slow, {}), timing.Candidate("fast", fast, {})]


def by_name(timings: list[timing.Timing]) -> dict[tuple[str, str], timing.Timing]:
    return {(entry.name, entry.boundary): entry for entry in timings}


def test_the_boundaries_measure_device_and_end_to_end(clock: Clock) -> None:
    results = by_name(timing.measure(candidates(clock, []), budget=0.1, seed=0))
    assert results["slow", "device"].ratio == timing.Interval(1.0, 1.0, 1.0)
    assert results["fast", "device"].ratio.value == pytest.approx(2, rel=0.02)
    assert results["fast", "end to end"].ratio.value == pytest.approx(1.5, rel=0.03)


def test_a_drifting_machine_does_not_move_the_ratio(clock: Clock) -> None:
    results = by_name(timing.measure(candidates(clock, []), budget=20, seed=0))
    slow = results["slow", "device"]
    assert slow.seconds.value > 2.2e-3  # it drifted
    ratio = results["fast", "device"].ratio
    assert ratio.low <= ratio.value <= ratio.high
    assert ratio.value == pytest.approx(2, rel=0.02)


def test_rounds_are_interleaved_in_random_order(clock: Clock) -> None:
    log: list[str] = []
    timings = timing.measure(candidates(clock, log), budget=5, seed=0)
    rounds = timings[0].rounds
    # In a fixed order no name would have two turns in a row, in random order every other has.
    changes = sum(one != other for one, other in itertools.pairwise(log[-6 * rounds :]))
    assert rounds < changes < 2 * rounds - rounds // 8


def test_an_unsettled_result_is_kept_and_marked(clock: Clock) -> None:
    timings = timing.measure(candidates(clock, [], spread=3.0), budget=0.01, seed=0)
    assert all(entry.rounds == timing.intervals.FEWEST for entry in timings)
    assert not all(entry.settled for entry in timings)


def test_narrow_results_stop_early(clock: Clock) -> None:
    timings = timing.measure(candidates(clock, [], drift=0), budget=1e9, seed=0)
    assert all(entry.settled for entry in timings)
    assert clock.now >= timing.MIN_SECONDS
    assert timings[0].rounds < timing.MAX_ROUNDS / 2


def test_two_sessions_may_differ_by_accident(clock: Clock) -> None:
    same = [timing.Candidate(n, Timed(clock, n, 1e-3, 1e-3, [], drift=0), {}) for n in "ab"]
    for entry in timing.measure(same, budget=1, seed=0):
        if entry.name == "b":
            part = timing.SESSIONS_DIFFER
            assert (entry.ratio.low, entry.ratio.high) == pytest.approx((1 - part, 1 + part))


def several(clock: Clock, log: list[str], slower: float) -> list[timing.Candidate]:
    """Returns two candidates with eight sessions each, which differ by up to 3 %."""
    chance = np.random.default_rng(3)

    def sessions(name: str, factor: float) -> list[Timed]:
        accidents = 1 + 0.015 * chance.uniform(-1, 1, timing.SESSIONS)
        return [
            Timed(clock, f"{name} {place}", 1e-3 * factor * accident, 1e-3, log, drift=0.0)
            for place, accident in enumerate(accidents)
        ]

    candidates = []
    for name, factor in (("one", 1.0), ("other", slower)):
        first, *others = sessions(name, factor)
        candidates.append(timing.Candidate(name, first, {}, others))
    return candidates


@pytest.mark.parametrize("slower", [1.0, 1.05])
def test_how_sessions_differ_is_part_of_the_interval(clock: Clock, slower: float) -> None:
    log: list[str] = []
    results = by_name(timing.measure(several(clock, log, slower), budget=5, seed=0))
    ratio = results["other", "device"].ratio
    assert ratio.low < 1 / slower < ratio.high
    assert 0.004 < ratio.reach < 0.02
    assert (ratio.high < 1) == (slower > 1)
    assert len({*log} - {f"bind {name}" for name in log}) >= 2 * timing.SESSIONS
    assert 0.004 < results["one", "device"].seconds.reach < 0.02


def test_sessions_take_turns_only_if_both_have_enough(clock: Clock) -> None:
    log: list[str] = []
    one, other = several(clock, log, 1.0)
    alone = timing.Candidate("other", other.session, {})
    results = by_name(timing.measure([one, alone], budget=5, seed=0))
    assert {name for name in log if name.startswith("other")} == {"other 0"}
    ratio = results["other", "device"].ratio
    assert ratio.reach >= timing.SESSIONS_DIFFER
    few = timing.Candidate("one", one.session, {}, one.others[: timing.intervals.FEWEST - 2])
    log.clear()
    timing.measure([few, alone], budget=5, seed=0)
    assert {name for name in log if name.startswith("one")} == {"one 0"}


def test_it_warms_up_until_runs_are_no_longer_faster() -> None:
    times = itertools.chain(np.linspace(1.0, 0.1, 40), itertools.repeat(0.1))
    runs = []

    def run(count: int) -> list[float]:
        runs.append(count)
        return [float(next(times)) for _ in range(count)]

    assert timing._warm(run, timing.WARMUP_SECONDS[1]) == pytest.approx(0.1)
    assert len(runs) >= 40


def test_the_budget_bounds_the_warm_up(clock: Clock) -> None:
    faster = Timed(clock, "faster", 0.05, 0.0, [], drift=-0.3)  # by over 1 % with each run
    timing.measure([timing.Candidate("faster", faster, {})], budget=0.2, seed=0)
    assert clock.now < timing.WARMUP_SECONDS[1] / 2


def test_threads_that_wait_for_a_cpu_make_a_slow_result_busy(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing.Waiting, "part", 2.0)
    steady = timing.measure(candidates(clock, [], drift=0), budget=1, seed=0)
    assert not any(entry.busy for entry in steady)
    slowed = timing.measure(candidates(clock, [], drift=0, spread=9.0), budget=1, seed=0)
    assert any(entry.busy for entry in slowed)
    monkeypatch.setattr(timing.Waiting, "part", 0.0)
    assert not any(
        e.busy for e in timing.measure(candidates(clock, [], spread=9.0), budget=1, seed=0)
    )


def test_a_turn_runs_in_for_as_long_as_the_threads_of_the_one_before_spin(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    spins = {"slow": 0.02, "fast": 0.0}
    log: list[str] = []
    pair = candidates(clock, log, drift=0)
    monkeypatch.setattr(timing, "longest_run", lambda _seconds: spins[log[-1]])
    timing.measure(pair, budget=0.1, seed=0)
    turns = [(name, len(list(group))) for name, group in itertools.groupby(log)][-9:-1]
    fewest = {name: min(count for turn, count in turns if turn == name) for name in spins}
    # One inference at each boundary counts; it takes 1 ms on the device, and 2 end to end. One does
    # not at the second boundary.
    assert fewest["slow"] == 1 + 1 + 2
    assert fewest["fast"] >= 10 + 1 + 2


@pytest.mark.parametrize(("seconds", "run_in"), [(0.001, 2), (0.05, 1), (0.3, 0)])
def test_a_long_inference_needs_no_run_in(clock: Clock, seconds: float, run_in: int) -> None:
    log: list[str] = []
    pair = [timing.Candidate(n, Timed(clock, n, seconds, 0, log, drift=0), {}) for n in "ab"]
    timing.measure(pair, budget=20 * seconds, seed=0)
    turns = [len(list(group)) for _, group in itertools.groupby(log)][-9:-1]
    assert min(turns) == run_in + 2


class Failing(Timed):
    """Fails after some launches."""

    left = 500

    def launch(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise DeployError("out of memory", "use a smaller batch")
        super().launch()


@pytest.mark.parametrize("left", [0, 500])
def test_the_others_go_on_if_one_fails(clock: Clock, left: int) -> None:
    failing = Failing(clock, "failing", 1e-3, 1e-3, [])
    failing.left = left
    many = [timing.Candidate("failing", failing, {}), *candidates(clock, [])]
    failures: dict[str, str] = {}
    timings = timing.measure(
        many, budget=3, seed=0, failed=lambda name, error: failures.update({name: error.message})
    )
    assert failures == {"failing": "out of memory"}
    results = by_name(timings)
    assert {name for name, _ in results} == {"slow", "fast"}
    assert results["slow", "device"].ratio.value == 1
    assert results["fast", "device"].ratio.value == pytest.approx(2, rel=0.02)


def test_without_anybody_to_tell_a_failure_is_raised(clock: Clock) -> None:
    failing = timing.Candidate("failing", Failing(clock, "failing", 1e-3, 1e-3, []), {})
    with pytest.raises(DeployError, match="out of memory"):
        timing.measure([failing], budget=3, seed=0)
    assert timing.measure([failing], budget=3, seed=0, failed=lambda *_: None) == []

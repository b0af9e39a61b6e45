"""The race of ways to run a model, with sessions of known duration and real ones."""

import time
from contextlib import closing
from pathlib import Path

import pytest

import engines
from engines.contract import Feeds, OpenOptions, Outputs
from engines.errors import DeployError
from pipeline.benchmarking import sweep as race
from pipeline.benchmarking.sweep import Way, sweep
from pipeline.golden import file as goldens
from pipeline.workflow.runner import Store


class Sleeping:
    """A session that takes so many seconds."""

    def __init__(self, seconds: float, lasts: int = 10**9) -> None:
        self.seconds, self.left = seconds, lasts

    def run(self, feeds: Feeds) -> Outputs:
        self.left -= 1
        if self.left < 0:
            raise DeployError("it is out of memory", "use a smaller batch")
        time.sleep(self.seconds)
        return {}


def way(name: str, seconds: float, *, rows: int = 1, count: int = 1, **more: float) -> Way:
    sessions = [Sleeping(seconds) for _ in range(count)]
    return Way(name, sessions, {}, rows, more.get("accuracy"))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(race, "RUN_IN_SECONDS", 0.0)


def test_what_is_beaten_drops_out_and_the_frontier_stays() -> None:
    ways = [
        way("quick", 0.002),
        way("slow", 0.008),
        way("large", 0.008, rows=16),
        way("two clients", 0.002, count=2),
    ]
    results = dict(zip((w.name for w in ways), sweep(ways, budget=0, seed=0), strict=True))
    assert results["slow"].beaten_by in {"quick", "two clients"}
    assert results["slow"].turns < results["large"].turns
    assert not any(results[name].beaten_by for name in ("two clients", "large"))
    rates = {name: result.throughput for name, result in results.items()}
    assert rates["two clients"] is not None
    assert rates["large"] is not None
    assert rates["two clients"].value == pytest.approx(2 / 0.002, rel=0.3)
    assert rates["large"].value == pytest.approx(16 / 0.008, rel=0.2)


def test_a_more_accurate_way_is_kept() -> None:
    ways = [way("int8", 0.001, accuracy=0.90), way("fp32", 0.01, accuracy=0.91)]
    assert not any(result.beaten_by for result in sweep(ways, budget=0, seed=0))
    ways = [way("int8", 0.001, accuracy=0.91), way("fp32", 0.01, accuracy=0.91)]
    assert sweep(ways, budget=0, seed=0)[1].beaten_by == "int8"
    ways = [way("unknown", 0.001), way("fp32", 0.01, accuracy=0.91)]
    assert not any(result.beaten_by for result in sweep(ways, budget=0, seed=0))


def test_an_exhaustive_sweep_measures_all_to_the_end() -> None:
    results = sweep([way("quick", 0.002), way("slow", 0.02)], budget=0, seed=0, prune=False)
    assert [result.turns for result in results] == [race.intervals.FEWEST] * 2
    assert not any(result.beaten_by for result in results)


def test_a_way_that_fails_leaves_the_others() -> None:
    broken = Way("broken", [Sleeping(0.002, lasts=30)], {}, 1, None)  # type: ignore[list-item]
    first, other = sweep([broken, way("sound", 0.002)], budget=0, seed=0)
    assert first.failure == "it is out of memory"
    assert first.turns < other.turns == race.intervals.FEWEST
    assert other.failure == ""
    never = Way("never", [Sleeping(0.002, lasts=0)], {}, 1, None)  # type: ignore[list-item]
    (result,) = sweep([never], budget=0, seed=0)
    assert (result.latency, result.turns, result.failure) == (None, 0, "it is out of memory")


def test_real_sessions(built: Store) -> None:
    folder = built.root / "lenet" / "fp32"
    golden = goldens.load(folder / "golden.npz")
    path: Path = folder / "onnxruntime" / "engine.onnx"
    with closing(engines.get("onnxruntime").open(path, OpenOptions("cpu", 1))) as session:
        ways = [Way(f"{rows}", [session], golden.feeds(rows), rows, 0.9) for rows in (1, 64)]
        one, many = sweep(ways, budget=0.5, seed=0)
    assert one.latency is not None
    assert many.latency is not None
    assert one.latency.high < many.latency.low
    assert one.requests > many.requests > 0

"""MLPerf's LoadGen itself, over sessions that sleep and double their input."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from engines.contract import Feeds, Outputs, TensorSpec
from engines.errors import DeployError
from pipeline.benchmarking import loadgen
from pipeline.benchmarking.loadgen import SCENARIOS, Library, Settings
from tests.timed import timed

pytest.importorskip("mlperf_loadgen")

SERVICE = 0.002
ROWS = 13  # no multiple of a batch
SETTINGS = Settings("", accuracy=False, seconds=0.3, rate=None, p99=0.1, batch=4, seed=0)


@dataclass
class Doubling:
    """A session that takes `SERVICE` for any batch, and fails after `lasts` runs."""

    batch: tuple[int, int] | None = None
    lasts: float = np.inf
    runs: int = 0
    largest: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    device: str = "cpu"
    stream: int | None = None

    def run(self, feeds: Feeds) -> Outputs:
        self.runs += 1
        if self.runs > self.lasts:
            raise DeployError("the engine has died", "")
        time.sleep(SERVICE)
        rows = feeds["x"]
        self.largest = max(self.largest, len(rows))
        assert self.batch is None or self.batch[0] <= len(rows) <= self.batch[1]
        return {"twice": 2 * rows, "first": rows[..., 0].astype(np.int64)}

    def bind(self, feeds: Feeds) -> None: ...

    def launch(self) -> None: ...

    def synchronize(self) -> None: ...

    def close(self) -> None: ...


X = np.arange(ROWS * 3, dtype=np.float32).reshape(ROWS, 3)
LIBRARY = Library({"x": X}, batched=True)


@pytest.mark.slow(2)
@pytest.mark.parametrize("scenario", SCENARIOS)
@timed
def test_loadgen_measures_the_service_time(scenario: str, tmp_path: Path) -> None:
    sessions = [Doubling(), Doubling()]
    summary, outputs = loadgen.run(
        sessions, LIBRARY, replace(SETTINGS, scenario=scenario), tmp_path
    )
    assert summary.valid is not None
    assert summary.errors == 0
    assert not outputs
    median = summary.figures["50.00 percentile latency (ns)"] / 1e9
    if scenario == "Offline":
        rate = summary.figures["Samples per second"]
        assert rate == pytest.approx(2 * SETTINGS.batch / SERVICE, rel=0.3)
    elif scenario == "Server":
        rate = summary.figures["Scheduled samples per second"]
        assert rate == pytest.approx(loadgen.SERVER_PART * 2 / SERVICE, rel=0.3)
    else:
        assert median == pytest.approx(SERVICE, rel=0.4)
    assert sessions[0].largest == {"MultiStream": 8, "Offline": 4}.get(scenario, 1)
    assert (sessions[1].runs > 0) == (scenario in ("Offline", "Server"))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_outputs_of_every_row_are_in_the_accuracy_log(scenario: str, tmp_path: Path) -> None:
    settings = replace(SETTINGS, scenario=scenario, accuracy=True)
    summary, outputs = loadgen.run([Doubling(), Doubling()], LIBRARY, settings, tmp_path)
    assert summary.valid is None
    assert sorted(outputs) == list(range(ROWS))
    for row, answer in outputs.items():
        assert answer["twice"].dtype == np.float32
        np.testing.assert_array_equal(answer["twice"], 2 * X[row])
        np.testing.assert_array_equal(answer["first"], int(X[row, 0]))


def test_a_batch_is_padded_to_what_the_session_accepts(tmp_path: Path) -> None:
    settings = replace(SETTINGS, scenario="Offline", accuracy=True)
    _, outputs = loadgen.run([Doubling(batch=(3, 3))], LIBRARY, settings, tmp_path)
    np.testing.assert_array_equal([outputs[row]["first"] for row in range(ROWS)], X[:, 0])


def test_a_graph_without_a_batch_axis_gets_one_row(tmp_path: Path) -> None:
    settings = replace(SETTINGS, scenario="MultiStream", accuracy=True)
    library = Library({"x": X}, batched=False)
    _, outputs = loadgen.run([Doubling()], library, settings, tmp_path)
    np.testing.assert_array_equal([outputs[row]["twice"] for row in range(ROWS)], 2 * X)


@pytest.mark.slow(2)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_session_that_fails_midway_is_an_error(scenario: str, tmp_path: Path) -> None:
    session = Doubling(lasts=0.5 / SERVICE)
    settings = replace(SETTINGS, scenario=scenario, seconds=1, rate=400)
    with pytest.raises(DeployError, match="the engine has died"):
        loadgen.run([session], LIBRARY, settings, tmp_path)


def test_an_invalid_run_has_loadgens_reasons(tmp_path: Path) -> None:
    settings = replace(SETTINGS, scenario="Server", rate=400, p99=SERVICE / 2)
    summary, _ = loadgen.run([Doubling()], LIBRARY, settings, tmp_path)
    assert summary.valid is False
    assert "Performance constraints satisfied: no" in summary.reasons
    assert "Reduce target QPS to improve latency." in summary.reasons
    assert any(reason.startswith("Would need to run at least ") for reason in summary.reasons)


def test_something_else_than_a_summary_is_refused() -> None:
    with pytest.raises(ValueError, match="how many errors"):
        loadgen.parse("Result is : VALID\n")

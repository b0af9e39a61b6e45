"""The command that lets MLPerf's LoadGen ask proved engines."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.backends._onnxruntime import OnnxRuntimeSession
from engines.contract import Feeds, Outputs
from pipeline.benchmarking.loadgen import SCENARIOS
from pipeline.cli import loadgen
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]
ENGINE = ("--engine", "onnxruntime")


def test_without_loadgen_the_hint_installs_it(
    built: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    result = assay("loadgen", "lenet", "--root", built.root, *ENGINE)
    assert result.code == 4
    assert "pip install mlcommons-loadgen" in result.err


def test_the_scenarios_are_those_of_loadgen() -> None:
    assert loadgen.SCENARIOS == SCENARIOS


def test_a_time_without_a_unit_is_wrong_usage(built: Store, assay: Assay) -> None:
    result = assay("loadgen", "lenet", "--root", built.root, *ENGINE, "--p99", "5")
    assert result.code == 2
    assert "'5' is not a time" in result.err


@pytest.fixture
def installed() -> None:
    pytest.importorskip("mlperf_loadgen")


@pytest.mark.usefixtures("installed")
def test_the_hint_for_an_engine_that_is_not_built_names_the_folder(
    assay: Assay, tmp_path: Path
) -> None:
    result = assay("loadgen", "edge", "--root", tmp_path)
    assert result.code == 1
    assert f"`assay build edge --root {tmp_path}`" in result.err


@pytest.mark.slow(4)
@pytest.mark.usefixtures("installed")
def test_loadgen_judges_its_own_runs(built: Store, assay: Assay, tmp_path: Path) -> None:
    words = ("--root", built.root, *ENGINE, "--min-duration", "0.2", "--log", tmp_path, "--json")
    # In so short a time, a p99 has too few queries.
    result = assay("loadgen", "lenet", *words, "--scenario", "SingleStream,Server", "--rate", "50")
    assert result.code == 5
    document = json.loads(result.out)
    stream, server = document["results"]
    assert (stream["valid"], server["valid"]) == (True, False)
    assert server["figures"]["Scheduled samples per second"] == pytest.approx(50, rel=0.9)
    assert "LoadGen calls onnxruntime in Server invalid" in result.err
    assert "Early stopping satisfied: no" in result.err
    assert "a longer --min-duration helps" in result.err
    summary = tmp_path / "onnxruntime-fp32-SingleStream-performance" / "mlperf_log_summary.txt"
    assert "Result is : VALID" in summary.read_text()


@pytest.mark.slow(4)
@pytest.mark.usefixtures("installed")
def test_the_outputs_of_an_accuracy_run_are_judged(built: Store, assay: Assay) -> None:
    words = ("--root", built.root, *ENGINE, "--mode", "accuracy", "--json", "--concurrency", "2")
    words += ("--precision", "fp32")
    result = assay("loadgen", "lenet", *words)
    assert result.code == 0, result.err
    verdicts = json.loads(result.out)["verdicts"]
    assert [verdict["status"] for verdict in verdicts] == ["pass"] * len(SCENARIOS)
    assert all(verdict["outputs"][0]["rms_ratio"] > 0 for verdict in verdicts)


@pytest.mark.usefixtures("installed", "in_process")
def test_an_engine_that_answers_wrongly_under_loadgen_is_a_mismatch(
    built: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_run = OnnxRuntimeSession.run

    def swapped(self: OnnxRuntimeSession, feeds: Feeds) -> Outputs:
        # As if answers in a batch were given to each other's queries.
        return {name: array[::-1] for name, array in really_run(self, feeds).items()}

    monkeypatch.setattr(OnnxRuntimeSession, "run", swapped)
    words = ("--root", built.root, *ENGINE, "--mode", "accuracy")
    assert assay("loadgen", "lenet", *words, "--scenario", "SingleStream").code == 0
    result = assay("loadgen", "lenet", *words, "--scenario", "Offline")
    assert result.code == 3
    assert "onnxruntime is not proved equal to the model" in result.err

"""The load stage: its options, its record, and engines that fail."""

import itertools
import json
import threading
from collections.abc import Callable

import pytest

from engines import hardware
from engines.backends._onnxruntime import OnnxRuntimeSession
from engines.contract import Feeds, Outputs
from engines.errors import DeployError
from pipeline.benchmarking import clients
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]
BRIEF = ("--duration", "0.1", "--json")


def loaded(assay: Assay, store: Store, *words: object) -> tuple[Result, dict]:
    result = assay("load", "lenet", "--root", store.root, *words, *BRIEF)
    outcome = json.loads(result.out).get("outcomes", [{"results": {"served": {}}}])[-1]
    return result, outcome["results"]["served"]


@pytest.mark.slow(3)
def test_each_engine_serves_each_number_of_sessions(store: Store, assay: Assay) -> None:
    words = ("--engine", "onnxruntime,openvino", "--concurrency", "2,1", "--batch", "3")
    result, served = loaded(assay, store, *words, "--rate", "50,20")
    assert result.code == 0, result.err
    cpus = hardware.available_cpus()
    for engine in served["engines"]:
        runs = engine["closed"]
        assert [(run["concurrency"], run["threads"]) for run in runs] == [
            (1, cpus),
            (2, max(1, cpus // 2)),
        ]
        assert all(run["requests"] and run["cpu_seconds"] > 0 for run in runs)
        rates = [run["rate"] for run in engine["arrivals"]]
        assert rates == sorted(rates)
        assert {20, 50} < {*rates}
        limit = engine["saturation"]
        assert 0 < limit["rate"] < limit["refused"]
        assert limit["refused"] <= max(3 * run["throughput"]["high"] for run in runs)
        assert f"{engine['name']} bears " in result.err
    assert served["rows"] == 3
    assert "Clients that wait for each answer; 3 images each" in result.err
    again, _ = loaded(assay, store, *words, "--rate", "20,50")
    assert json.loads(again.out)["outcomes"][-1]["skipped"]


@pytest.mark.slow(2)
def test_a_bound_on_p99_is_part_of_the_answer(store: Store, assay: Assay) -> None:
    words = ("--engine", "onnxruntime", "--concurrency", "1")
    result, served = loaded(assay, store, *words, "--p99", "1us", "--rate", "100")
    assert result.code == 0, result.err
    assert served["engines"][0]["saturation"]["rate"] == 0
    # No rate is tried but that of the user, which is measured to its end.
    assert [run["rate"] for run in served["engines"][0]["arrivals"]] == [100]
    assert served["engines"][0]["arrivals"][0]["late"] == 1
    assert not served["engines"][0]["arrivals"][0]["borne"]
    assert "bears no rate with a p99 of at most 1.00 µs: a request alone takes longer" in result.err
    assert loaded(assay, store, *words, "--p99", "1")[0].code == 2


def test_too_short_a_duration_is_refused(store: Store, assay: Assay) -> None:
    words = ("--engine", "onnxruntime", "--duration", "0.05")
    result = assay("load", "lenet", "--root", store.root, *words)
    assert result.code == 2
    assert "--duration 0.05 is too short: the least is 0.1 s" in result.err


@pytest.mark.slow(2)
@pytest.mark.usefixtures("in_process")
def test_an_engine_that_fails_is_a_row_and_others_go_on(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_run, runs = OnnxRuntimeSession.run, itertools.count()

    def run(self: OnnxRuntimeSession, feeds: Feeds) -> Outputs:
        if next(runs) > 20:
            raise DeployError("out of memory", "")
        return really_run(self, feeds)

    words = ("--engine", "onnxruntime,openvino", "--concurrency", "1")
    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeSession, "run", run)
        result = assay("load", "lenet", "--root", store.root, *words, "--duration", "0.1")
    assert result.code == 1
    assert "onnxruntime failed under load: out of memory" in result.err
    assert any("onnxruntime" in line and "out of memory" in line for line in result.out.split("\n"))
    assert "openvino bears " in result.out
    again, served = loaded(assay, store, *words)
    assert again.code == 0
    assert "onnxruntime failed" in json.loads(again.out)["outcomes"][-1]["reason"]
    assert not any(engine["failure"] for engine in served["engines"])


@pytest.mark.slow(2)
@pytest.mark.usefixtures("in_process")
def test_an_engine_that_hangs_is_a_row(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_run, runs, released = OnnxRuntimeSession.run, itertools.count(), threading.Event()
    closed: list[object] = []

    def run(self: OnnxRuntimeSession, feeds: Feeds) -> Outputs:
        if next(runs) == 5:
            released.wait()
        return really_run(self, feeds)

    monkeypatch.setattr(OnnxRuntimeSession, "run", run)
    monkeypatch.setattr(OnnxRuntimeSession, "close", closed.append)
    monkeypatch.setattr(clients, "PATIENCE", 0.2)
    monkeypatch.setattr(clients, "GRACE", 0.1)
    words = ("--engine", "onnxruntime", "--concurrency", "1", "--duration", "0.1", "--seed", "1")
    try:
        result = assay("load", "lenet", "--root", store.root, *words)
    finally:
        released.set()
    assert result.code == 1
    reason = "a session has not returned for 0.2 s"
    assert f"onnxruntime failed under load: {reason}" in result.err
    assert "name the other engines with --engine" in result.err
    served = json.loads((store.root / "lenet/fp32/served.json").read_text())
    assert [engine["failure"] for engine in served["engines"]] == [reason]
    assert not closed  # a library may crash if a session is closed in use


def test_an_engine_that_is_not_proved_is_not_loaded(store: Store, assay: Assay) -> None:
    verdict = store.root / "lenet" / "fp32" / "onnxruntime" / "verdict.json"
    verdict.unlink()
    result = assay("load", "lenet", "--root", store.root, "--engine", "onnxruntime")
    assert result.code == 1
    assert "assay verify lenet --engine onnxruntime" in result.err

"""The profile stage: what each engine costs, each in a process of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.contract import OpenOptions
from engines.errors import CrashedError
from exporters.work import Work
from pipeline.benchmarking.comparison import Load
from pipeline.benchmarking.profiling import Subject, profile
from pipeline.report import profile as report
from pipeline.workflow.runner import Store
from tests.conftest import Result, need_engine
from tests.exporters.test_onnx_work import ROW

Assay = Callable[..., Result]


@pytest.mark.slow(9)
def test_each_engine_has_its_costs_and_its_share(store: Store, assay: Assay) -> None:
    need_engine("openvino")
    words = ("profile", "lenet", "--root", store.root, "--engine", "onnxruntime,openvino")
    words += ("--batch", "4", "--budget", "0.1", "--threads", "1", "--json")
    result = assay(*words)
    assert result.code == 0, result.err
    (outcome,) = json.loads(result.out)["outcomes"]
    costs = outcome["results"]["costs"]
    assert costs["machine"]["threads"] == 1
    before = [entry["memory"]["before"] for entry in costs["engines"]]
    assert max(before) - min(before) < 5 << 20  # each is a new process
    for entry, name in zip(costs["engines"], ("onnxruntime", "openvino"), strict=True):
        assert (entry["engine"], entry["device"]) == (name, "cpu")
        (file,) = (store.root / "lenet/fp32" / name).glob("engine.*")
        assert entry["file_bytes"] == file.stat().st_size
        assert min(entry["library_seconds"], entry["open_seconds"]) > 0
        memory = entry["memory"]
        # The library alone takes megabytes.
        assert memory["before"] + (10 << 20) < memory["opened"] <= memory["steady"] + (10 << 20)
        assert memory["peak"] is None or memory["peak"] >= memory["opened"]
        (load,) = entry["loads"]
        assert load["batch"] == 4
        assert load["work"]["operations"] == {"fp32": 4 * 2 * ROW}
        assert min(load["first_seconds"], load["seconds"]["value"]) > 0
        assert 0 < load["cpu_seconds"] < 2 * load["wall_seconds"]
        assert load["joules"] is not None or load["no_energy"]
        share = load["roofline"]["share"]
        assert 0 < share["low"] <= share["value"] <= share["high"]
        assert share["value"] < 0.8
        assert sum(layer["share"] for layer in load["layers"]) == pytest.approx(1)
    assert {entry["precision"] for entry in costs["products"]} == {"fp32"}
    assert "Cost of an inference" in result.err
    for line in ("how fast openvino multiplies here", "openvino at batch 4"):
        assert f"profile: {line}\n" in result.err
    assert "onnxruntime at batch 4: " in result.err  # LeNet is far from any peak
    again = json.loads(assay(*words).out)
    assert again["outcomes"][0]["skipped"]


def test_an_engine_that_is_not_proved_is_not_profiled(store: Store, assay: Assay) -> None:
    verdict = store.root / "lenet/fp32/onnxruntime/verdict.json"
    verdict.unlink()
    result = assay("profile", "lenet", "--root", store.root, "--engine", "onnxruntime")
    assert result.code == 1
    assert "`assay verify lenet --engine onnxruntime" in result.err
    assert not (store.root / "lenet/fp32/costs.json").exists()


@pytest.mark.slow(2)
@pytest.mark.usefixtures("faulty_engines")
def test_a_library_that_crashes_is_a_row_and_the_others_go_on(
    built: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = built.root / "lenet/fp32/onnxruntime/engine.onnx"
    loads = (Load(1, {"image": np.zeros((1, 1, 28, 28), np.uint8)}),)
    subjects = [
        Subject(name, path, OpenOptions(), loads, (Work({"fp32": 1}, 1, 1, 1),))
        for name, path in (("segfaulting", graph), ("openvino", Path()), ("onnxruntime", graph))
    ]
    document = profile(subjects, (), (), threads=1, budget=0.1, seed=0)
    crashed, failed, fine = document["engines"]
    assert crashed["crashed"]
    assert "SIGSEGV" in crashed["error"]
    assert not failed["crashed"]
    assert "OpenVINO does not accept" in failed["error"]
    assert fine["loads"][0]["no_roofline"] == (
        "no engine that runs here could be timed on products in fp32"
    )
    report.show(document)
    out = capsys.readouterr().out
    assert "segfaulting   crashed" in out
    with pytest.raises(CrashedError, match=r"segfaulting crashed: signal 11 \(SIGSEGV\)"):
        report.require_profiles(document)

"""The bench stage: its options and its record."""

import dataclasses
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

import engines
from engines import hardware
from engines.contract import Feeds, Session
from engines.errors import DeployError, FailedError, ParityError
from pipeline.stages import Subject, bench, bundle
from pipeline.workflow.digests import read_json
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]
BRIEF = ("--budget", "0.05", "--force", "--json")


@pytest.mark.slow(1)
def test_threads_and_cpus_are_recorded_and_restored(store: Store, assay: Assay) -> None:
    first, *_ = before = hardware.affinity()
    words = ("bench", "lenet", "--root", store.root, "--engine", "onnxruntime", "--batch", "1")
    result = assay(*words, "--affinity", first, *BRIEF)
    assert result.code == 0, result.err
    facts = json.loads(result.out)["outcomes"][-1]["results"]["measurements"]["machine"]
    assert (facts["affinity"], facts["threads"]) == ([first], 1)
    assert hardware.affinity() == before


def test_an_engine_is_measured_on_the_device_that_it_is_proved_on() -> None:
    subject = Subject.of("onnxruntime", "fp32")
    passed = {"status": "pass", "precision": "fp32"}
    subject.require_proof({**passed, "facts": {"device": "cpu"}}, "lenet", "auto")
    with pytest.raises(ParityError, match="proved on 'cuda:0' only") as caught:
        subject.require_proof({**passed, "facts": {"device": "cuda:0"}}, "lenet", "auto")
    assert "`assay verify lenet --engine onnxruntime --device cpu`" in caught.value.hint


class Failing:
    """A session that fails on more than one row."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def bind(self, feeds: Feeds) -> None:
        if len(next(iter(feeds.values()))) > 1:
            raise DeployError("it is out of memory", "use a smaller batch")
        self._session.bind(feeds)


@pytest.mark.slow(9)
@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("opens", [True, False])
def test_the_others_are_measured_though_one_fails(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    engine = type(engines.get("pytorch"))
    real = engine.open

    def open_(*options: Any) -> Any:
        if not opens:
            raise FailedError("pytorch cannot open its file", "build it again")
        return Failing(real(*options))

    monkeypatch.setattr(engine, "open", open_)
    words = ("bench", "lenet", "--root", store.root, "--engine", "onnxruntime,pytorch")
    result = assay(*words, "--batch", "1,2", *BRIEF)
    assert result.code == 1
    document = json.loads(result.out)
    measured = read_json(store.root / "lenet" / "fp32" / "measurements.json")
    assert [entry["name"] for entry in measured["failures"]] == ["pytorch"]
    known = {(entry["name"], entry["batch"]) for entry in measured["results"]}
    alone = {("onnxruntime", 1), ("onnxruntime", 2)}
    assert known == alone | ({("pytorch", 1)} if opens else set())
    assert "pytorch failed" in document["error"]["message"]
    monkeypatch.undo()
    again = assay(*words, "--batch", "1,2", "--budget", "0.05")
    assert (again.code, "failed last time" in again.err) == (0, True), again.err


def test_a_comparison_of_precisions_is_part_of_no_bundle() -> None:
    params = bench.Params("lenet", engine=("onnxruntime",), against=("fp16",))
    compared, alone = (
        {artifact.at(precision="fp32").record for artifact in bench.STAGE.outputs(chosen)}
        for chosen in (params, dataclasses.replace(params, against=()))
    )
    assert not compared & alone
    bundled = {part.record for part in bundle.STAGE.inputs(bundle.Params("lenet"))}
    assert bundled & alone
    assert not bundled & compared


@pytest.mark.slow(9)
def test_a_list_option_may_be_repeated(store: Store, assay: Assay) -> None:
    parts = ("--engine", "onnxruntime", "--engine", "pytorch", "--batch", "1,2", "--batch", "3")
    result = assay("bench", "lenet", "--root", store.root, *parts, *BRIEF)
    measured = json.loads(result.out)["outcomes"][-1]["results"]["measurements"]["results"]
    assert {(entry["name"], entry["batch"]) for entry in measured} == {
        (name, batch) for name in ("onnxruntime", "pytorch") for batch in (1, 2, 3)
    }


def test_unavailable_cpus_are_wrong_usage(store: Store, assay: Assay) -> None:
    absent = (os.cpu_count() or 1) + 7
    result = assay("bench", "lenet", "--root", store.root, "--affinity", absent)
    assert result.code == 2
    assert f"--affinity {absent}: this process may only use the" in result.err


@pytest.mark.skipif(bool(hardware.gpus()), reason="this machine has a GPU")
def test_cuda_graphs_without_a_gpu_are_not_available(store: Store, assay: Assay) -> None:
    result = assay("bench", "lenet", "--root", store.root, "--cuda-graph")
    assert result.code == 4
    assert "has CUDA graphs on this machine" in result.err

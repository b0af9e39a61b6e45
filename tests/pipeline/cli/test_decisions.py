"""`assay compare` and `assay choose`, on real bundles and results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engines
from benchmarks.method import Slowed
from engines import hardware
from engines.errors import CrashedError
from pipeline.benchmarking import clock, contention, several
from pipeline.bundling import checking, opening
from pipeline.cli import side_by_side
from pipeline.report.page import choice
from pipeline.workflow.runner import Store
from tests.bundles import bundle_of
from tests.conftest import Result
from tests.pipeline.report.page.pages import rewrite

WORDS = ("--trust", "--engine", "onnxruntime", "--threads", "1")


def assert_code(result: Result, code: int) -> None:
    """Checks an exit code; on a machine so busy that nothing is known, it is 1."""
    busy = "other processes slowed" in result.err
    assert result.code == (1 if busy else code), result.err


def documented(result: Result) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(result.out)
    return document


def test_a_bundle_is_not_slower_than_itself(built: Store, assay: Callable[..., Result]) -> None:
    bundle = bundle_of(built)
    result = assay("compare", bundle, bundle, *WORDS, "--batch", "1,2", "--budget", "0.4")
    assert result.code in (0, 1, 5), result.err
    assert "speed against A onnxruntime" in result.out
    assert result.out.count("times as long as A") == 2
    words = (*WORDS, "--tolerance", "100", "--budget", "0.4", "--json")
    result = assay("compare", bundle, bundle, *words)
    (verdict,) = documented(result)["verdicts"]
    assert result.code == {"pass": 0, "busy": 1}[verdict["status"]], result.err
    assert verdict["longer"]["low"] <= verdict["longer"]["value"] <= verdict["longer"]["high"]


@pytest.mark.usefixtures("in_process")
def test_a_slower_bundle_is_found(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest, calls = opening.fastest, []

    def slowed(*words: Any) -> Any:
        name, session = fastest(*words)
        calls.append(name)
        return name, Slowed(session, 1.0) if len(calls) == 2 else session  # B

    monkeypatch.setattr(opening, "fastest", slowed)
    monkeypatch.setattr(several, "more", lambda *_: [])
    bundle = bundle_of(built)
    result = assay("compare", bundle, bundle, *WORDS, "--tolerance", "10", "--budget", "1")
    assert_code(result, 5)
    if result.code == 5:
        assert "B is slower than A by more than 10 %: onnxruntime at batch 1" in result.err
    calls.clear()
    result = assay("compare", bundle, bundle, *WORDS, "--tolerance", "900", "--budget", "1")
    assert_code(result, 0)


def test_engine_files_are_compared(built: Store, assay: Callable[..., Result]) -> None:
    folder = built.root / "lenet" / "fp32"
    one, other = folder / "onnxruntime" / "engine.onnx", folder / "openvino" / "engine.zip"
    words = ("--threads", "1", "--tolerance", "900", "--budget", "0.4", "--json")
    result = assay("compare", one, other, *words)
    assert_code(result, 0)
    assert set(documented(result)["devices"]) == {"A onnxruntime", "B openvino"}
    result = assay("compare", one, bundle_of(built), *words, "--trust")
    assert_code(result, 0)
    assert set(documented(result)["devices"]) == {"A onnxruntime", "B onnxruntime"}


def test_a_changed_engine_file_is_not_compared(store: Store, assay: Callable[..., Result]) -> None:
    path = store.root / "lenet" / "fp32" / "onnxruntime" / "engine.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    result = assay("compare", path, path)
    assert result.code == 1
    assert "is not the engine that was made" in result.err
    assert f"assay build lenet --engine onnxruntime --root {store.root}" in result.err


@pytest.mark.usefixtures("in_process")
def test_what_other_processes_slowed_down_is_no_pass(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contention, "NOTICEABLE", -1.0)
    monkeypatch.setattr(clock.Waiting, "part", 2.0)
    monkeypatch.setattr(clock, "BUSY_SLOWER", 0.0)
    bundle = bundle_of(built)
    result = assay("compare", bundle, bundle, *WORDS, "--budget", "0.1", "--json")
    assert result.code == 1
    assert "other processes slowed onnxruntime at batch 1 down" in result.err
    (verdict,) = documented(result)["verdicts"]
    assert verdict["status"] == "busy"


@pytest.mark.slow(9)
def test_bundles_are_compared_at_the_same_precision(
    store: Store, assay: Callable[..., Result]
) -> None:
    place = ("--root", store.root, "--dist", store.dist)
    stages = ("export", "build", "verify", "bundle")
    engine = {"export": (), "bundle": ("--engine", "onnxruntime", "--no-measurements")}
    for stage in stages:
        more = engine.get(stage, ("--engine", "onnxruntime"))
        if stage == "build":
            assert assay("verify", "lenet", "--precision", "fp16", *place[:2]).code == 0
        where = place if stage == "bundle" else place[:2]
        result = assay(stage, "lenet", "--precision", "fp16", *more, *where)
        assert result.code == 0, result.err
    both = ("bundle", "lenet", "--precision", "fp32,fp16", "--engine", "onnxruntime")
    assert assay(*both, "--no-measurements", *place).code == 0
    half, whole = store.dist / "lenet-fp16.tar.zst", store.dist / "lenet-fp32+fp16.tar.zst"
    quick = ("--budget", "0.2", "--tolerance", "900")
    result = assay("compare", half, whole, *WORDS, *quick)
    assert_code(result, 0)
    assert "A is" not in result.out
    result = assay("compare", bundle_of(store), half, *WORDS, *quick)
    assert_code(result, 0)
    assert "A is fp32, and B is fp16" in result.out


@pytest.mark.long
def test_every_engine_that_both_have_is_compared(
    built: Store, assay: Callable[..., Result]
) -> None:
    bundle = bundle_of(built)
    words = ("--trust", "--tolerance", "900", "--budget", "0.2", "--json")
    document = documented(assay("compare", bundle, bundle, *words))
    held = [*document["manifests"][0]["models"]["fp32"]["engines"]]
    compared = [verdict["name"] for verdict in document["verdicts"]]
    assert compared == [name for name in held if engines.get(name).available().run]


@pytest.mark.usefixtures("faulty_engines")
def test_a_library_that_ends_the_process_is_an_error(built: Store) -> None:
    folder = built.root / "lenet/fp32"
    paths = {"segfaulting": folder / "onnxruntime/engine.onnx"}
    model = checking.Model("fp32", paths, folder / "golden.npz")
    with pytest.raises(CrashedError, match=r"SIGSEGV.* while comparing segfaulting"):
        side_by_side.apart(
            side_by_side.Pair([model] * 2, [["segfaulting"]] * 2, [1], "cpu", 1, 0.1, 0)
        )


def test_nothing_is_opened_without_consent(built: Store, assay: Callable[..., Result]) -> None:
    result = assay("compare", bundle_of(built), bundle_of(built))
    assert result.code == 2
    assert "give --trust" in result.err


@pytest.mark.usefixtures("in_process")
def test_bundles_of_other_inputs_are_not_compared(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest, calls = opening.fastest, []

    def renamed(*words: Any) -> Any:
        name, session = fastest(*words)
        calls.append(name)
        if len(calls) == 2:
            session.inputs = ()
        return name, session

    monkeypatch.setattr(opening, "fastest", renamed)
    result = assay("compare", bundle_of(built), bundle_of(built), *WORDS)
    assert result.code == 2
    assert "compare bundles of the same inputs" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch", "0"), "not batch sizes"),
        (("--batch", "1,x"), "not batch sizes"),
        (("--engine", "nothing"), "the bundle has no engine 'nothing'"),
        (("--tolerance", "-1"), "-1"),
    ],
)
def test_wrong_words_are_explained(
    built: Store, assay: Callable[..., Result], words: tuple[str, ...], message: str
) -> None:
    result = assay("compare", bundle_of(built), bundle_of(built), "--trust", *words)
    assert result.code == 2
    assert message in result.err


def test_a_damaged_bundle_is_named(
    built: Store, assay: Callable[..., Result], tmp_path: Path
) -> None:
    good, bad = bundle_of(built), tmp_path / "bad.tar.zst"
    shutil.copy(good, bad)
    bad.write_bytes(bad.read_bytes()[:-100])
    result = assay("compare", good, bad, "--trust")
    assert result.code == 1
    assert str(bad) in result.err
    result = assay("compare", good, tmp_path / "none", "--trust")
    assert (result.code, "none does not exist" in result.err) == (1, True)


def test_an_engine_that_keeps_the_bounds_is_chosen(
    built: Store, assay: Callable[..., Result]
) -> None:
    where = ("--root", built.root, "--dist", built.dist)
    result = assay("choose", "lenet", *where, "--latency", "10s", "--max-drop", "1")
    if result.code == 5:  # on a machine so busy that nothing is sure
        assert "other processes slowed it down" in result.out
    else:
        assert result.code == 0, result.err
        assert "chosen: " in result.out
    result = assay("choose", "lenet", *where, "--latency", "1us", "--json")
    assert result.code == 5
    document = documented(result)
    assert document["chosen"] is None
    for entry in document["candidates"]:
        others = entry["candidate"]["others"] or 0.0
        assert entry["status"] == ("unsure" if others > contention.NOTICEABLE else "no")
    assert {entry["candidate"]["batch"] for entry in document["candidates"]} == {1, 4}


def test_a_precision_that_is_out_of_date_is_named(
    store: Store, assay: Callable[..., Result]
) -> None:
    shutil.copytree(store.root / "lenet/fp32", store.root / "lenet/int8")
    result = assay("choose", "lenet", "--root", store.root, "--latency", "10s")
    assert "left out: " in result.err
    assert "lenet/int8/" in result.err


def test_choosing_without_bounds_or_results_is_explained(
    assay: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = assay("choose", "lenet")
    assert result.code == 2
    assert "give --p99, --latency" in result.err
    result = assay("choose", "lenet", "--p99", "1ms")
    assert result.code == 1
    assert "run `assay run lenet`" in result.err
    assert assay("choose", "lenet", "--p99", "soon").code == 2


def test_measurements_of_another_version_are_measured_again(
    store: Store, assay: Callable[..., Result]
) -> None:
    def as_before(content: dict[str, Any]) -> dict[str, Any]:
        for entry in content["results"]:
            del entry["busy"]
        return content

    rewrite(store, "lenet/fp32/measurements.json", "lenet/fp32/bench.json", as_before)
    where = ("--root", store.root, "--dist", store.dist)
    result = assay("choose", "lenet", *where, "--latency", "10s")
    assert result.code == 1
    assert "KeyError: 'busy'" in result.err
    assert "run `assay bench lenet" in result.err


def test_what_a_sweep_has_measured_is_chosen_from(
    store: Store, assay: Callable[..., Result]
) -> None:
    words = ("lenet", "--root", store.root)
    quick = ("--engine", "onnxruntime", "--batch", "1,2", "--budget", "0.1")
    result = assay("sweep", *words, *quick, "--concurrency", "1,2", "--threads", "1", "--json")
    assert result.code == 0, result.err
    points = documented(result)["outcomes"][-1]["results"]["frontier"]["points"]
    assert {(p["engine"], p["sessions"], p["batch"]) for p in points} == {
        ("onnxruntime", sessions, batch)
        for sessions in range(1, 1 + min(2, hardware.available_cpus()))
        for batch in (1, 2)
    }
    again = assay("sweep", *words, *quick, "--concurrency", "1,2", "--threads", "1")
    assert "nothing changed, skipped" in again.err
    result = assay("choose", *words, "--min-throughput", "1", "--json")
    assert result.code == 0, result.err
    document = documented(result)
    left = [point for point in points if not point["beaten_by"]]
    best = min(left, key=lambda point: float(point["latency"]["value"]))
    chosen = document["chosen"]
    assert (chosen["batch"], chosen["sessions"]) == (best["batch"], best["sessions"])
    assert chosen["served"][0] == best["throughput"]["value"]
    known = [entry["candidate"] for entry in document["candidates"]]
    runs = {one["run"] for one in known if (one["engine"], one["batch"]) == ("onnxruntime", 1)}
    assert runs <= {choice.SWEEP}  # `assay bench` was at another time


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (("--threads", "4096"), "is out of range", 2),
        (("--threads", "1024"), "are more than the", 2),
        (("--precision", "int8"), "no engine of lenet is built that runs on this machine", 1),
        (("--engine", "tensorrt"), "no engine of lenet is built", 1),
        (("--batch", "0"), "--batch 0 is out of range", 2),
    ],
)
def test_a_sweep_of_nothing_is_explained(
    built: Store, assay: Callable[..., Result], words: tuple[str, ...], message: str, code: int
) -> None:
    result = assay("sweep", "lenet", "--root", built.root, *words)
    assert result.code == code
    assert message in result.err

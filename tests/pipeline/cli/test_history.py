"""`assay bench --history`: what took longer is run beside its file of then."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx
import pytest

from benchmarks.method import Slowed
from engines.errors import DeployError
from pipeline.benchmarking.history import History
from pipeline.verification import engine_proof
from pipeline.workflow import lock
from pipeline.workflow.digests import read_json, replace_json, sha256_file
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]
QUICK = ("--engine", "onnxruntime", "--batch", "1", "--threads", "1", "--budget", "0.4")


@pytest.fixture
def kept(store: Store, assay: Assay) -> tuple[Store, Path]:
    """A kept run, said to have been ten times as quick, with another file of the same content."""
    result = assay("bench", "lenet", "--root", store.root, *QUICK, "--history")
    assert result.code == 0, result.err
    assert "this is the first run that is kept for this machine" in result.out
    folder = store.root / ".history" / "lenet" / "fp32"
    (entry,) = read_json(folder / "runs.json")
    (digest,) = entry["engines"].values()
    # Another file that computes the same, and is recorded as what was built then.
    path, record = folder / digest / "engine.onnx", folder / digest / "build.json"
    content = onnx.load(path)
    content.producer_version = "then"
    onnx.save(content, path.with_name("then"))
    other = sha256_file(path.with_name("then"))
    (folder / other).mkdir()
    path.with_name("then").rename(folder / other / path.name)
    recorded = record.read_text().replace(digest, other)
    (folder / other / record.name).write_text(recorded)
    entry["engines"] = {"onnxruntime": other}
    entry["started"] = "2020-01-01T00:00:00+00:00"
    for part in entry["results"]:
        part["seconds"] = {name: value / 10 for name, value in part["seconds"].items()}
    replace_json(folder / "runs.json", [entry])
    return store, folder


def again(store: Store, assay: Assay) -> tuple[Result, dict[str, Any]]:
    words = ("bench", "lenet", "--root", store.root, *QUICK, "--history", "--json")
    result = assay(*words)
    return result, json.loads(result.out)


def test_a_slower_machine_is_not_a_slower_engine(kept: tuple[Store, Path], assay: Assay) -> None:
    store, _ = kept
    result, document = again(store, assay)
    assert result.code == 0, result.err
    assert not document["outcomes"][-1]["skipped"]  # what was measured before tells nothing new
    assert document["history"]["runs"] == 2
    (case,) = document["history"]["longer"]
    assert case["case"]["then"]["started"].startswith("2020-01-01")
    assert case["case"]["low"] > 5
    assert case["status"] == "machine"
    assert 0.7 < case["longer"]["value"] < 1.4


@pytest.mark.usefixtures("in_process")
def test_a_slower_engine_is(
    kept: tuple[Store, Path], assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, folder = kept
    real = engine_proof.open_built

    def slowed(engine: Any, path: Path, options: Any) -> Any:
        session = real(engine, path, options)
        return session if path.is_relative_to(folder) else Slowed(session, 1.0)

    monkeypatch.setattr(engine_proof, "open_built", slowed)
    result, document = again(store, assay)
    assert result.code == 5, result.err
    assert "slower than before by more than 2 %: onnxruntime at batch 1" in result.err
    (case,) = document["longer"]
    assert case["status"] == "slower"
    assert case["longer"]["low"] > 1.5


def test_what_cannot_be_settled_stays_open(kept: tuple[Store, Path], assay: Assay) -> None:
    store, folder = kept
    (entry,) = read_json(folder / "runs.json")
    (library,) = [name for name in entry["versions"] if name.startswith("onnxruntime")]
    replace_json(
        folder / "runs.json", [{**entry, "versions": {**entry["versions"], library: "1.0"}}]
    )
    result, document = again(store, assay)
    assert result.code == 0, result.err
    (case,) = document["history"]["longer"]
    assert case["status"] == "open"
    assert f"{library} 1.0 ->" in case["why"]
    replace_json(folder / "runs.json", [entry])
    shutil.rmtree(folder / entry["engines"]["onnxruntime"])
    _, document = again(store, assay)
    (case,) = document["history"]["longer"]
    assert (case["status"], case["why"]) == (
        "open",
        "open, since the engine of then is gone or has changed",
    )


def test_runs_of_other_machines_do_not_count(kept: tuple[Store, Path], assay: Assay) -> None:
    store, folder = kept
    (entry,) = read_json(folder / "runs.json")
    machine = {**entry["machine"], "cpu": "another"}
    replace_json(folder / "runs.json", [{**entry, "machine": machine}])
    _, document = again(store, assay)
    assert document["history"] == {"runs": 2, "longer": []}


def test_precisions_side_by_side_have_no_history(built: Store, assay: Assay) -> None:
    words = ("bench", "lenet", "--root", built.root, "--against", "fp16", "--history")
    result = assay(*words)
    assert result.code == 2
    assert "leave out one of the two" in result.err


def test_old_runs_and_their_engines_are_dropped(tmp_path: Path) -> None:
    source = tmp_path / "engine.onnx"
    (tmp_path / "build.json").write_text("{}")
    machine = {"cpu": "x", "cpus": 1, "threads": 1, "gpus": []}
    for number in range(30):
        source.unlink(missing_ok=True)
        source.write_text(f"{number}")
        seconds = 1.0 if number == 3 else 2.0
        timing = {"value": seconds, "low": seconds, "high": seconds}
        result = {
            "name": "onnxruntime",
            "batch": 1,
            "boundary": "end to end",
            "busy": False,
            "seconds": timing,
        }
        measurements = {"machine": machine, "devices": {}, "results": [result]}
        history = History(tmp_path, "m", "fp32")
        entry = history.add(
            f"{number}", measurements, {}, {"onnxruntime": (source, f"digest{number}")}
        )
        assert history.add(f"{number}", measurements, {}, {}) == entry
    kept_numbers = [entry["started"] for entry in History(tmp_path, "m", "fp32").entries]
    assert kept_numbers == ["3", *map(str, range(9, 30))]
    quickest = history.file("digest3")
    assert quickest is not None
    assert quickest.read_text() == "3"
    assert history.file("digest4") is None
    (slower,) = history.slower(history.entries[-1])
    assert (slower.low, slower.then["started"]) == (2.0, "3")
    assert dataclasses.astuple(slower)[:3] == ("onnxruntime", 1, "")


ENTRY: dict[str, Any] = {
    "started": "0",
    "machine": {},
    "devices": {},
    "versions": {},
    "engines": {"onnxruntime": "0" * 64},
    "results": [{"name": "onnxruntime", "batch": 1, "seconds": {"low": 1, "high": 2}}],
}


@pytest.mark.parametrize(
    "content",
    [
        {},
        None,
        "text",
        [1],
        [{}],
        *(
            [{name: ENTRY[name] for name in ENTRY if name != lost}]
            for lost in ENTRY
            if lost != "devices"
        ),
        [{**ENTRY, "results": [{"name": "onnxruntime", "batch": 1}]}],
        [{**ENTRY, "results": [{**ENTRY["results"][0], "seconds": {"low": 0, "high": 0}}]}],
    ],
)
def test_runs_that_are_damaged_or_of_another_version_are_an_error(
    tmp_path: Path, content: object
) -> None:
    file = tmp_path / ".history" / "m" / "fp32" / "runs.json"
    file.parent.mkdir(parents=True)
    replace_json(file, [ENTRY])
    assert History(tmp_path, "m", "fp32").entries == [ENTRY]
    replace_json(file, content)
    with pytest.raises(DeployError, match=r"runs\.json is damaged, or of another version"):
        History(tmp_path, "m", "fp32")


def test_a_run_that_is_kept_while_another_waits_is_not_lost(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("bench", "lenet", "--root", store.root, *QUICK, "--history")
    assert assay(*words).code == 0
    file = store.root / ".history" / "lenet" / "fp32" / "runs.json"
    held = lock.held

    def wait(*arguments: Any) -> AbstractContextManager[None]:
        if "history" in arguments:
            replace_json(file, [{**read_json(file)[0], "started": str(n)} for n in range(3)])
        return held(*arguments)

    monkeypatch.setattr(lock, "held", wait)
    assert assay(*words, "--force").code == 0
    assert [entry["started"] for entry in read_json(file)][:3] == ["0", "1", "2"]
    assert len(read_json(file)) == 4

"""Trained weights are replaced only if asked, and those that are replaced are kept."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engines import hardware
from engines.errors import UsageError
from pipeline.cli import stage_runs
from pipeline.workflow import lock, runs
from pipeline.workflow.artifacts import lock_file
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]
OPTIONS = ("--seed", 3, "--epochs", 2, "--lr", 0.01, "--batch-size", 16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts of a trained edge model. Read-only: tests change a copy."""
    folder = tmp_path_factory.mktemp("trained") / "artifacts"
    options = {"seed": 3, "epochs": 2, "lr": 0.01, "batch_size": 16}
    store = Store(folder, folder.parent / "dist")
    stage_runs.run_stage("train", {"model": "edge", **options}, store)
    stage_runs.run_stage("export", {"model": "edge"}, store)
    return folder


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "artifacts")
    return tmp_path / "artifacts"


def digest(root: Path) -> str:
    return hashlib.sha256((root / "edge/checkpoint.safetensors").read_bytes()).hexdigest()


LATER = {
    "train": ("train", "edge"),
    "train by force": ("train", "edge", "--force"),
    "train with a recorded option": ("train", "edge", "--epochs", 2),
    "export": ("export", "edge", "--force"),
    "export in fp16": ("export", "edge", "--precision", "fp16"),
    "verify": ("verify", "edge"),
    "build": ("build", "edge", "--engine", "onnxruntime"),
    "run": ("run", "edge", "--engine", "onnxruntime", "--budget", 0.1),
    "run by force": ("run", "edge", "--engine", "onnxruntime", "--budget", 0.1, "--force"),
    "run in fp16": ("run", "edge", "--precision", "fp16", "--engine", "onnxruntime"),
    "summary": ("summary", "edge"),
    "runs": ("runs", "edge"),
    "clean": ("clean", "edge"),
}


@pytest.mark.parametrize("words", LATER.values(), ids=LATER)
def test_a_later_command_without_options_keeps_the_weights(
    words: tuple[object, ...], root: Path, assay: Assay
) -> None:
    before = digest(root)
    where = () if words[0] == "summary" else ("--root", root, "--dist", root.parent / "dist")
    result = assay(*words, *where)
    assert result.code == 0, result.err
    assert digest(root) == before
    assert json.loads((root / "edge/training.json").read_text())["seed"] == 3


@pytest.mark.parametrize("what", ["a newer torch", "fewer threads", "a newer assay"])
def test_another_machine_or_version_keeps_the_weights(
    what: str, root: Path, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "a newer torch":
        monkeypatch.setattr(hardware, "version", lambda _name: "99.0")
    elif what == "fewer threads":
        monkeypatch.setattr(hardware, "available_cpus", lambda: 1)
    else:
        record = json.loads((root / "edge/train.json").read_text())
        record["key"] = "0" * 64
        (root / "edge/train.json").write_text(json.dumps(record))
    before = digest(root)
    result = assay("train", "edge", "--root", root)
    assert result.code == 0, result.err
    assert digest(root) == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--epochs", 3), "epochs was 2, is now 3"),
        (("--seed", 0), "seed was 3, is now 0"),
        (("--preset", "quick"), "preset was full, is now quick"),
        (("--threads", 1), "threads was"),
    ],
)
def test_other_options_ask_for_a_decision_and_the_hint_carries_it_out(
    words: tuple[object, ...], reason: str, root: Path, assay: Assay
) -> None:
    before = digest(root)
    refused = assay("run", "edge", *words, "--engine", "onnxruntime", "--root", root)
    assert refused.code == 2
    assert reason in refused.err
    assert digest(root) == before
    command = refused.err.partition("hint: `assay ")[2].partition("`")[0].split()
    assert assay(*command).code == 0
    record = json.loads((root / "edge/train.json").read_text())
    name = str(words[0]).removeprefix("--")
    assert record["params"][name] == words[1]
    (kept,) = (root / "edge/runs").iterdir()
    assert hashlib.sha256((kept / "checkpoint.safetensors").read_bytes()).hexdigest() == before


def test_training_again_keeps_the_options_that_are_not_given(root: Path, assay: Assay) -> None:
    assert assay("train", "edge", "--retrain", "--epochs", 3, "--root", root).code == 0
    params = json.loads((root / "edge/train.json").read_text())["params"]
    assert [params[name] for name in ("seed", "epochs", "lr", "batch_size")] == [3, 3, 0.01, 16]


def test_a_changed_checkpoint_is_not_replaced_unasked(root: Path, assay: Assay) -> None:
    path = root / "edge/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    changed = digest(root)
    refused = assay("run", "edge", "--engine", "onnxruntime", "--root", root)
    assert refused.code == 2
    assert "has changed since it was made" in refused.err
    assert digest(root) == changed
    assert assay("train", "edge", "--retrain", "--root", root).code == 0
    assert (root / "edge/runs" / changed[:12] / path.name).exists()


def test_weights_with_a_damaged_record_are_not_replaced_unasked(root: Path, assay: Assay) -> None:
    before = digest(root)
    (root / "edge/train.json").write_text("{")
    refused = assay("run", "edge", "--engine", "onnxruntime", "--root", root)
    assert refused.code == 2
    assert "not valid JSON" in refused.err
    assert digest(root) == before
    assert assay("train", "edge", "--retrain", "--root", root).code == 0
    assert (root / "edge/runs" / before[:12]).is_dir()


def test_weights_from_a_file_are_kept_by_later_commands(
    root: Path, tmp_path: Path, assay: Assay
) -> None:
    weights = tmp_path / "mine.safetensors"
    shutil.copyfile(root / "edge/checkpoint.safetensors", weights)
    shutil.rmtree(root)
    assert assay("train", "edge", "--weights", weights, "--root", root).code == 0
    before = digest(root)
    weights.unlink()
    assert assay("train", "edge", "--root", root).code == 0
    assert digest(root) == before


def test_runs_are_listed_and_taken_back(root: Path, assay: Assay) -> None:
    first = digest(root)[:12]
    assert assay("train", "edge", "--retrain", "--epochs", 3, "--root", root).code == 0
    second = digest(root)[:12]
    listed = assay("runs", "edge", "--root", root, "--json")
    assert [(run["name"], run["current"]) for run in json.loads(listed.out)] == [
        (second, True),
        (first, False),
    ]
    assert assay("runs", "edge", "--use", first[:5], "--root", root).code == 0
    assert digest(root)[:12] == first
    assert [(run.name, run.current) for run in runs.of_model(root, "edge")] == [
        (first, True),
        (second, False),
    ]
    assert assay("verify", "edge", "--root", root).code == 0  # of the graph of the first weights
    unknown = assay("runs", "edge", "--use", "nothing", "--root", root)
    assert (unknown.code, first in unknown.err) == (2, True)


def test_a_run_is_named_by_an_unambiguous_beginning_or_a_whole_digest() -> None:
    names = ["12ab00000000", "12cd00000000"]
    assert runs._meant("edge", "12c", names) == names[1]
    assert runs._meant("edge", names[0] + "f" * 52, names) == names[0]
    for word, message in (("12", "beginning of 2 runs"), ("x", "no run"), ("", "no run")):
        with pytest.raises(UsageError, match=message):
            runs._meant("edge", word, names)


def test_writing_to_the_current_weights_never_changes_kept_ones(root: Path, assay: Assay) -> None:
    first = digest(root)
    assert assay("train", "edge", "--retrain", "--seed", 4, "--root", root).code == 0
    runs.use(root, "edge", first[:12], patience=0)
    with (root / "edge/checkpoint.safetensors").open("r+b") as file:
        file.write(b"other")
    kept = root / "edge/runs" / first[:12] / "checkpoint.safetensors"
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == first


def test_damaged_weights_are_not_taken_back(root: Path, assay: Assay) -> None:
    first = digest(root)
    assert assay("train", "edge", "--retrain", "--seed", 4, "--root", root).code == 0
    now = digest(root)
    kept = root / "edge/runs" / first[:12] / "checkpoint.safetensors"
    kept.write_bytes(kept.read_bytes()[:-1])
    refused = assay("runs", "edge", "--use", first[:12], "--root", root)
    assert refused.code == 1
    assert "is damaged" in refused.err
    assert digest(root) == now


def test_cleaning_removes_replaced_weights_only(root: Path, assay: Assay) -> None:
    before = digest(root)
    assert assay("train", "edge", "--retrain", "--seed", 4, "--root", root).code == 0
    after = digest(root)
    tried = assay("clean", "edge", "--dry-run", "--root", root)
    assert f"would remove run {before[:12]}" in tried.out
    assert (root / "edge/runs" / before[:12]).exists()
    cleaned = assay("clean", "edge", "--root", root)
    assert f"removed run {before[:12]}" in cleaned.out
    assert not (root / "edge/runs" / before[:12]).exists()
    assert digest(root) == after
    assert "there is nothing to remove" in assay("clean", "edge", "--root", root).out


def test_weights_are_not_exchanged_during_a_training(root: Path, assay: Assay) -> None:
    assert assay("train", "edge", "--retrain", "--seed", 4, "--root", root).code == 0
    (kept,) = (root / "edge/runs").iterdir()
    with lock.held(lock_file(root, "edge/train.json"), "edge train", 0):
        refused = assay("runs", "edge", "--use", kept.name, "--root", root, "--wait", 0)
    assert refused.code == 1
    assert "edge train is being run by process" in refused.err


def test_data_of_the_last_training_is_used_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "lenet", tmp_path / "dist")
    options = {"model": "lenet", "limit": 64, "test_limit": 32, "epochs": 1}
    stage_runs.run_stage("data", {}, store)
    stage_runs.run_stage("train", {**options, "data": "fashion-mnist"}, store)
    (again,) = stage_runs.run_stage("train", {"model": "lenet"}, store)
    assert again.skipped
    forced = dataclasses.replace(store, force=True)
    assert stage_runs.run_stage("train", {"model": "lenet"}, forced)[0].skipped


def test_a_killed_change_of_weights_can_be_run_again(root: Path, assay: Assay) -> None:
    record, before = root / "edge/train.json", (root / "edge/train.json").read_bytes()
    name = digest(root)[:12]
    assert assay("train", "edge", "--root", root, "--seed", 4, "--retrain").code == 0
    runs.use(root, "edge", name, 0)
    record.unlink()  # the last file that it writes
    assert assay("runs", "edge", "--root", root).code == 0
    runs.use(root, "edge", name, 0)
    assert record.read_bytes() == before


def test_weights_whose_publication_was_killed_are_listed(root: Path, assay: Assay) -> None:
    (root / "edge/train.json").unlink()
    (root / "edge/training.json").unlink()
    result = assay("runs", "edge", "--root", root)
    assert result.code == 0, result.err
    assert digest(root)[:12] in result.out

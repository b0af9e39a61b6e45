"""The command in a hint fixes the error."""

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engines.errors import DeployError
from pipeline.cli import main, stage_runs
from pipeline.workflow import chain, hints, runner
from pipeline.workflow.artifacts import CHECKPOINT, GRAPH, TRAIN_IMAGES, Artifact
from pipeline.workflow.runner import Store
from tests.conftest import Result

pytestmark = pytest.mark.slow(2)  # each runs a command

Assay = Callable[..., Result]
MODEL = {"model": "edge", "precision": "fp16"}
ENGINE = "onnxruntime"
WORDS = {
    "train": ["edge"],
    "export": ["edge", "--precision", "fp16"],
    "verify": ["edge", "--precision", "fp16", "--engine", ENGINE],
    "build": ["edge", "--precision", "fp16", "--engine", ENGINE],
    "bench": ["edge", "--precision", "fp16", "--engine", ENGINE, "--batch", "1", "--budget", "0.1"],
    "load": ["edge", "--precision", "fp16", "--engine", ENGINE, "--duration", "0.1"],
    "bundle": ["edge", "--precision", "fp16", "--engine", ENGINE],
}


@pytest.fixture(scope="module")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The chain of the edge detector, in folders whose names have a space."""
    folder: Path = tmp_path_factory.mktemp("hints of")
    store = Store(folder / "my artifacts", folder / "my dist")
    place = ["--root", str(store.root), "--dist", str(store.dist), "--quiet"]
    for stage in ("train", "export", "build", "verify", "bench"):
        assert main.main([stage, *WORDS[stage], *place]) == 0
    assert main.main(["verify", *WORDS["export"], *place]) == 0  # the graph
    assert main.main(["bundle", *WORDS["bundle"], *place]) == 0
    return store


@pytest.fixture
def copy(built_once: Store, tmp_path: Path) -> Store:
    shutil.copytree(built_once.root, tmp_path / "my artifacts")
    shutil.copytree(built_once.dist, tmp_path / "my dist")
    return Store(tmp_path / "my artifacts", tmp_path / "my dist")


def inputs(stage: str) -> Iterator[Artifact]:
    chosen = chain.stage(stage)
    engine = (ENGINE,) if stage in ("bench", "load", "bundle") else ENGINE
    named = set(chosen.params.__dataclass_fields__)
    values = {k: v for k, v in {**MODEL, "engine": engine}.items() if k in named}
    if stage == "bundle":
        values["precision"] = (values["precision"],)
    params = chosen.params(**values)
    for artifact in chosen.inputs(params):
        if not artifact.optional:
            yield artifact.at(**MODEL, engine=ENGINE)


CASES = [
    (stage, artifact)
    for stage in ("export", "build", "verify", "bench", "load", "bundle")
    for artifact in inputs(stage)
]


def hinted(result: Result) -> list[str]:
    (hint,) = [line for line in result.err.splitlines() if line.startswith("hint: ")]
    (command,) = re.findall("`assay (.*?)`", hint)
    return shlex.split(command)


def follow_hints(assay: Assay, store: Store, stage: str, message: str) -> list[str]:
    """Follows hints until a stage succeeds; returns the stages that ran on the way."""
    place = ["--root", store.root, "--dist", store.dist]
    ran = []
    result = assay(stage, *WORDS[stage], *place)
    assert message in result.err
    while result.code == 1:
        error = result.err
        words = hinted(result)
        ran.append(words[0])
        again = assay(*words)
        assert again.code == 0, (words, again.err)
        result = assay(stage, *WORDS[stage], *place)
        assert result.err != error, words
        assert len(ran) < len(chain.STAGES), ran
    assert result.code == 0, result.err
    return ran


@pytest.mark.parametrize(
    ("stage", "artifact"), CASES, ids=[f"{stage}-{case.path}" for stage, case in CASES]
)
def test_the_hint_for_a_missing_artifact_makes_it(
    copy: Store, assay: Assay, stage: str, artifact: Artifact
) -> None:
    path = copy.root / artifact.path
    path.unlink()
    ran = follow_hints(assay, copy, stage, f"no {artifact.kind} here: {path} does not exist")
    assert ran[0] == artifact.stage
    assert path.exists()


def test_no_hint_is_made_without_an_error(
    store: Store, assay: Assay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> str:
        raise AssertionError("a hint imports the model, and with it torch")

    monkeypatch.setattr(hints, "making", fail)
    words = ("bundle", "lenet", "--root", store.root, "--dist", store.dist, "--force")
    assert assay(*words).code == 0


def test_the_hint_for_a_changed_artifact_restores_it(copy: Store, assay: Assay) -> None:
    place = ["--root", copy.root, "--dist", copy.dist]
    words = [*WORDS["export"], "--exporter", "torchscript"]
    assert assay("export", *words, *place).code == 0
    graph = copy.root / "edge/fp16/model.onnx"
    content = graph.read_bytes()
    graph.write_bytes(b"other")
    result = assay("build", *WORDS["build"], *place)
    assert hinted(result)[:6] == ["export", *WORDS["export"], "--exporter", "torchscript"]
    assert follow_hints(assay, copy, "build", "is not the graph that was made") == ["export"]
    assert graph.read_bytes() == content


def test_the_hint_for_a_damaged_record_replaces_it(copy: Store, assay: Assay) -> None:
    (copy.root / "edge/train.json").write_text("{")
    assert follow_hints(assay, copy, "export", "not valid JSON") == ["train"]


def test_the_hints_for_an_outdated_artifact_update_it(copy: Store, assay: Assay) -> None:
    place = ["--root", copy.root, "--dist", copy.dist]
    assert assay("train", "edge", "--retrain", "--seed", "1", *place).code == 0
    ran = follow_hints(assay, copy, "bundle", "is out of date: it was made from another")
    assert "export" in ran
    assert json.loads((copy.root / "edge/train.json").read_text())["params"]["seed"] == 1


def test_training_without_data_hints_at_the_data_stage(
    assay: Assay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = assay("train", "lenet")
    assert "no training images here" in result.err
    assert "hint: run `assay data`\n" in result.err
    result = assay("train", "lenet", "--root", "other place")
    assert "hint: run `assay data --root 'other place'`\n" in result.err
    assert assay(*hinted(result)).code == 0
    result = assay("train", "lenet", "--epochs", 0, "--root", "other place")
    assert result.code == 0


def test_the_hint_names_an_image_folder_by_its_path(
    assay: Assay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my photos").mkdir()
    monkeypatch.chdir(tmp_path)
    result = assay("train", "lenet", "--data", "my photos")
    assert "hint: run `assay data --data 'my photos'`\n" in result.err


def test_the_hint_has_the_data_set_only_if_it_was_given(assay: Assay, tmp_path: Path) -> None:
    result = assay("export", "edge", "--data", "fashion-mnist", "--root", tmp_path)
    assert hinted(result) == ["train", "edge", "--data", "fashion-mnist", "--root", str(tmp_path)]
    result = assay("export", "lenet", "--root", tmp_path)
    assert hinted(result) == ["train", "lenet", "--root", str(tmp_path)]


@pytest.mark.parametrize("stage", ["bench", "bundle"])
def test_without_engines_the_hint_builds_them(copy: Store, assay: Assay, stage: str) -> None:
    (copy.root / "edge/fp16/onnxruntime/engine.onnx").unlink()
    words = [word for word in WORDS[stage] if word not in ("--engine", ENGINE)]
    result = assay(stage, *words, "--root", copy.root, "--dist", copy.dist)
    assert hinted(result) == ["build", *WORDS["export"], "--root", str(copy.root)]


def test_a_report_without_results_hints_at_run(assay: Assay, tmp_path: Path) -> None:
    result = assay("report", "edge", "--precision", "fp16", "--root", tmp_path)
    assert hinted(result) == ["run", *WORDS["export"], "--root", str(tmp_path)]


def test_hints_for_a_stage_of_another_version() -> None:
    assert hints.again("polish", {"model": "edge"}) == "assay polish edge"
    images = TRAIN_IMAGES.at(dataset="fashion-mnist")
    assert hints.making(images, {}) == "assay data"
    checkpoint = CHECKPOINT.at(model="torchvision:resnet18")
    assert hints.making(checkpoint, {}) == "assay train torchvision:resnet18"


def test_require_has_the_same_hints(copy: Store) -> None:
    params = chain.stage("build").params(model="edge", precision="bf16", engine=ENGINE)
    with pytest.raises(DeployError) as caught:
        runner.require(GRAPH, params, copy)
    root = shlex.quote(str(copy.root))
    assert caught.value.hint == f"run `assay export edge --precision bf16 --root {root}`"
    assert stage_runs.run_stage("export", {"model": "edge", "precision": "bf16"}, copy)
    assert runner.require(GRAPH, params, copy).exists()

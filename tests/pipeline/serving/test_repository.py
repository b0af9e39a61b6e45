"""Triton model repositories: what is in them, and that nothing of others is lost."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engines.errors import DeployError
from pipeline.golden import file as goldens
from pipeline.serving import config, repository
from pipeline.serving.repository import MARKER, Source, write
from pipeline.workflow.runner import Store
from tests.conftest import Result

pytest.importorskip("tritonclient")
Assay = Callable[..., Result]


def where(store: Store) -> tuple[object, ...]:
    return ("--root", store.root, "--dist", store.dist)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def source(built: Store) -> Source:
    """LeNet's graph as the engine onnxruntime runs it."""
    folder = built.root / "lenet/fp32"
    return Source(
        model="lenet",
        precision="fp32",
        engine="onnxruntime",
        file=folder / "model.onnx",
        golden=folder / "golden.npz",
        labels=tuple("0123456789"),
        largest=16,
        verdict="pass",
    )


def test_proved_engines_are_served(built: Store, assay: Assay, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    result = assay("triton", "lenet", folder, *where(built), "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert {*document["models"]} >= {"lenet_fp32_onnxruntime", "lenet_fp32_openvino"}
    assert "TorchScript" in document["left_out"]["pytorch fp32"]
    assert (folder / "lenet_fp32_openvino/1/model.xml").read_bytes().startswith(b"<?xml")
    graph = built.root / "lenet/fp32/model.onnx"
    served = folder / "lenet_fp32_onnxruntime/1/model.onnx"
    assert served.read_bytes() == graph.read_bytes()


def test_the_configuration_is_tied_to_what_was_proved(source: Source, tmp_path: Path) -> None:
    (name,) = write(tmp_path / "repository", [source])
    folder = tmp_path / "repository" / name
    message = config.parse((folder / "config.pbtxt").read_text())
    assert message.platform == "onnxruntime_onnx"
    assert message.max_batch_size == 16
    assert list(message.input[0].dims) == [1, 28, 28]
    assert list(message.dynamic_batching.preferred_batch_size) == [8, 16]
    digest = hashlib.sha256(source.file.read_bytes()).hexdigest()
    assert message.parameters["assay.sha256"].string_value == digest
    digest = hashlib.sha256(source.golden.read_bytes()).hexdigest()
    assert message.parameters["assay.golden_sha256"].string_value == digest
    assert (folder / "labels.txt").read_text().split() == list("0123456789")
    golden = goldens.load(source.golden)
    row = np.frombuffer((folder / "warmup/input0").read_bytes(), np.uint8)
    assert (row == golden.inputs["image"][0].ravel()).all()
    assert [warm_up.batch_size for warm_up in message.model_warmup] == [1, 16]
    assert not message.response_cache.enable


@pytest.mark.parametrize(
    ("engine", "accelerators"),
    [
        ("onnxruntime_cuda", {"cuda": {"use_tf32": "0"}}),
        ("onnxruntime_tensorrt", {"tensorrt": {}, "cuda": {"use_tf32": "0"}}),
        ("tensorrt", {}),
    ],
)
def test_engines_of_gpus_run_on_gpus(
    source: Source, tmp_path: Path, engine: str, accelerators: dict[str, dict[str, str]]
) -> None:
    changed = dataclasses.replace(source, engine=engine, verdict="not run", usual=4)
    (name,) = write(tmp_path / "repository", [changed])
    folder = tmp_path / "repository" / name
    text = (folder / "config.pbtxt").read_text()
    message = config.parse(text)
    assert "kind: KIND_GPU" in text
    listed = message.optimization.execution_accelerators.gpu_execution_accelerator
    assert {entry.name: dict(entry.parameters) for entry in listed} == accelerators
    assert message.parameters["assay.verdict"].string_value == "not run"
    assert list(message.dynamic_batching.preferred_batch_size) == [4, 16]
    assert (folder / "1/model.plan").exists() == (engine == "tensorrt")


def test_labels_that_fit_no_output_are_left_out(source: Source, tmp_path: Path) -> None:
    for labels in ((), ("a",), ("a\nb", *"012345678")):
        (name,) = write(tmp_path / "repository", [dataclasses.replace(source, labels=labels)])
        assert not (tmp_path / "repository" / name / "labels.txt").exists()


def test_a_repository_of_ours_is_replaced(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    write(folder, [source])
    write(folder, [dataclasses.replace(source, largest=4)])
    assert "max_batch_size: 4\n" in (folder / source.name / "config.pbtxt").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


@pytest.mark.parametrize("name", ["config.pbtxt", "1/model.onnx", "2/model.onnx", "note.txt"])
def test_changes_of_the_user_are_not_lost(source: Source, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "repository"
    write(folder, [source])
    path = folder / source.name / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write("# mine\n")
    before = content(folder)
    with pytest.raises(DeployError, match="would lose changes"):
        write(folder, [source])
    assert content(folder) == before


def test_a_folder_of_others_is_not_replaced(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(DeployError, match="assay did not write"):
        write(folder, [source])
    assert content(folder) == {"thesis.txt": b"mine"}
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(DeployError, match="not a folder"):
        write(tmp_path / "link", [source])
    (folder / "thesis.txt").rename(folder / MARKER)
    with pytest.raises(DeployError):
        write(folder, [source])


def test_a_failure_leaves_the_old_repository(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "repository"
    write(folder, [source])
    before = content(folder)
    with pytest.raises(FileNotFoundError):
        write(folder, [dataclasses.replace(source, file=tmp_path / "gone.onnx")])
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target == folder and path.parent == tmp_path:
            raise OSError("no more names")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no more names"):
        write(folder, [dataclasses.replace(source, largest=4)])
    assert content(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]


def test_an_engine_that_is_not_proved_is_left_out(
    store: Store, assay: Assay, tmp_path: Path
) -> None:
    words = ("--engine", "onnxruntime", *where(store))
    path = store.root / "lenet/fp32/onnxruntime/engine.onnx"
    path.write_bytes(path.read_bytes() + b" ")
    result = assay("triton", "lenet", tmp_path / "repository", *words)
    assert result.code == 1
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--engine", "onnxruntim"), "did you mean 'onnxruntime'"),
        (("--precision", "fp31"), "did you mean 'fp32'"),
    ],
)
def test_unknown_names_are_wrong_usage(
    built: Store, assay: Assay, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    result = assay("triton", "lenet", tmp_path / "repository", *words, *where(built))
    assert result.code == 2
    assert message in result.err


def test_without_an_engine_that_triton_serves_the_reasons_are_named(
    built: Store, assay: Assay, tmp_path: Path
) -> None:
    words = ("--engine", "pytorch", *where(built))
    result = assay("triton", "lenet", tmp_path / "repository", *words)
    assert result.code == 1
    assert "TorchScript" in result.err
    assert "assay build lenet --engine onnxruntime" in result.err
    result = assay("triton", "lenet", tmp_path / "repository", "--precision", "int8", *where(built))
    assert result.code == 1
    assert "`assay build lenet --precision int8 --engine onnxruntime" in result.err
    assert not (tmp_path / "repository").exists()


def test_files_are_listed_with_their_digests(source: Source, tmp_path: Path) -> None:
    write(tmp_path / "repository", [source])
    assert repository.changed_files(tmp_path / "repository") == []
    (tmp_path / "repository" / source.name / "labels.txt").unlink()
    (line,) = repository.changed_files(tmp_path / "repository")
    assert line == (f"{source.name}/labels.txt", "is missing")
    shutil.rmtree(tmp_path / "repository" / source.name)
    (line,) = repository.changed_files(tmp_path / "repository")
    assert line == (f"the folder {source.name}", "is missing")

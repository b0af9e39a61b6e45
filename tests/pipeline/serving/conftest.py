"""Fixtures: a model repository, and real servers that serve it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import roofline
from pipeline.cli import main
from pipeline.workflow.runner import Store
from tests import servers


@pytest.fixture(scope="session")
def repository(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LeNet's Triton model repository. Read-only."""
    folder = tmp_path_factory.mktemp("triton") / "repository"
    words = ["triton", "lenet", str(folder), "--root", str(built.root), "--dist", str(built.dist)]
    assert main.main(words) == 0
    return folder


@pytest.fixture(scope="session")
def three_models(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with LeNet, ResNet-18 and a narrow VGG-11, and the golden files beside it."""
    folder = tmp_path_factory.mktemp("three")
    for name in ("resnet18", "vgg11-slim"):
        words, passed = roofline.proved(name, "fp32", folder, ["onnxruntime"])
        assert passed == ["onnxruntime"]
        assert main.main(["triton", words[0], str(folder / name), "--root", str(folder)]) == 0
        for model in (folder / name).glob("*/config.pbtxt"):
            shutil.copytree(model.parent, folder / "repository" / model.parent.name)
    for model in repository.glob("*onnxruntime"):
        shutil.copytree(model, folder / "repository" / model.name)
    return folder


@pytest.fixture(scope="module")
def triton(
    three_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[servers.Running]:
    """A Triton server with the three models."""
    with servers.triton(three_models / "repository", tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="module")
def mlserver(built: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Running]:
    """An MLServer with LeNet's graph."""
    graph = built.root / "lenet/fp32/model.onnx"
    with servers.mlserver(graph, tmp_path_factory.mktemp("mlserver")) as server:
        yield server

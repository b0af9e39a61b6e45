"""Bisection where no node of the graph is at fault, or where an operator is several of them."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.conftest import Result, need_engine

Assay = Callable[..., Result]
SOURCE = '''
import numpy as np
import torch
from torch import nn

from pipeline.models import Model


class Normed(nn.Module):
    """torch decomposes the norm of a vector as if it were that of its only row."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.linspace(1, 2, 4))
        nn.utils.parametrizations.weight_norm(self, "weight")

    def forward(self, x):
        return self.linear(x) * self.weight


class Fourier(nn.Module):
    def forward(self, x):
        return torch.fft.fft2(x).real


class Square(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x * x / 8) + x.sum(-1, keepdim=True)


def normed():
    torch.manual_seed(0)
    rows = np.random.default_rng(0).random((8, 4), np.float32)
    return Model(network=Normed(), inputs={"x": rows})


def fourier():
    rows = np.random.default_rng(0).random((4, 60, 96), np.float32)
    return Model(network=Fourier(), inputs={"x": rows})


def square():
    torch.manual_seed(0)
    rows = np.random.default_rng(0).random((8, 4), np.float32)
    return Model(network=Square(), inputs={"x": rows})
'''


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    (tmp_path / "translated.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return lambda factory: f"translated.py:{factory}"


def test_a_decomposition_that_changes_the_model_is_named(
    named: Callable[[str], str], assay: Assay
) -> None:
    name = named("normed")
    assert assay("export", name).code == 0
    assert assay("verify", name).code == 3
    result = assay("verify", name, "--bisect")
    assert result.code == 3
    assert "the translation changed the model here: _weight_norm of network" in result.err
    assert "no node of the graph is at fault" in result.err


@pytest.mark.slow(2)
def test_an_operator_of_several_nodes_is_judged_as_one(
    named: Callable[[str], str], assay: Assay
) -> None:
    need_engine("openvino")
    name = named("fourier")
    assert assay("export", name).code == 0
    result = assay("verify", name, "--bisect", "--engine", "openvino")
    if result.code == 0:
        pytest.skip("this OpenVINO computes a DFT of 60 points right")
    assert result.code == 3
    assert "openvino does not compute what the graph says" in result.err


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_fault_in_a_graph_of_a_half_type_is_found(
    named: Callable[[str], str], assay: Assay, precision: str
) -> None:
    name = named("square")
    assert assay("export", name, "--precision", precision).code == 0
    graph = f"artifacts/translated.py-square/{precision}/model.onnx"
    result = assay("verify", name, "--precision", precision, "--bisect")
    assert result.code == 0, result.err
    model = onnx.load(graph)
    (node,) = (node for node in model.graph.node if node.op_type == "ReduceSum")
    node.op_type = "ReduceMax"
    onnx.save(model, "changed.onnx")
    result = assay("verify", name, "--precision", precision, "--bisect", "--file", "changed.onnx")
    assert result.code == 3
    assert "first: ReduceMax node" in result.out
    assert "the graph itself differs from the model" in result.out

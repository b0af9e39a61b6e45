"""Graphs that other tools made of a model: judged by their outputs and by their weights."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
import torch

from tests.conftest import Result

Assay = Callable[..., Result]
SOURCE = """
import numpy as np
import torch
from torch import nn

from pipeline.models import Model


def make():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )
    for norm in (network[1], network[4]):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean)
        nn.init.normal_(norm.bias)
    rows = np.random.default_rng(0).random((6, 3, 9, 9), np.float32)
    return Model(network=network, inputs={"x": rows})
"""


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assay: Assay) -> torch.nn.Module:
    """Exports the model with assay and returns its network."""
    (tmp_path / "foreign.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    assert assay("export", "foreign.py:make").code == 0
    names: dict = {}
    exec(compile(SOURCE, "foreign.py", "exec"), names)  # noqa: S102 - the source above
    return names["make"]().network.eval()


def by_torch(network: torch.nn.Module, path: Path, *, dynamo: bool) -> None:
    shapes = (
        {"dynamic_shapes": ({0: "batch"},)}
        if dynamo
        else {"dynamic_axes": {"x": {0: "batch"}, "output": {0: "batch"}}}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.rand(2, 3, 9, 9),),
            path,
            dynamo=dynamo,
            input_names=["x"],
            output_names=["output"],
            external_data=False,
            verbose=False,
            **shapes,
        )


def slimmed(network: torch.nn.Module, path: Path) -> None:
    by_torch(network, path, dynamo=False)
    onnx.save(onnxslim.slim(onnx.load(path)), path)


def optimised(network: torch.nn.Module, path: Path) -> None:
    by_torch(network, path, dynamo=False)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    settings.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])


TOOLS = {
    "torch.export": lambda network, path: by_torch(network, path, dynamo=True),
    "TorchScript": lambda network, path: by_torch(network, path, dynamo=False),
    "onnxslim": slimmed,
    "ONNX Runtime": optimised,
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_right_graph_passes_and_one_with_a_changed_weight_does_not(
    tool: str, exported: torch.nn.Module, assay: Assay
) -> None:
    path = Path("other.onnx")
    TOOLS[tool](exported, path)
    words = ("verify", "foreign.py:make", "--file", path)
    result = assay(*words)
    assert result.code == 0, result.err
    model = onnx.load(path)
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    assert len(weights) == 3
    for tensor in weights:
        right = onnx.numpy_helper.to_array(tensor)
        wrong = right.copy()
        wrong.ravel()[int(np.abs(wrong).argmax())] *= np.float32(1 + 1e-4)
        tensor.CopyFrom(onnx.numpy_helper.from_array(wrong, tensor.name))
        onnx.save(model, "changed.onnx")
        result = assay(*words[:-1], "changed.onnx")
        assert result.code == 3, tensor.name
        assert "weights" in result.err
        tensor.CopyFrom(onnx.numpy_helper.from_array(right, tensor.name))

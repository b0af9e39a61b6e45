"""Bisection of engines: whose fault it is, plots, and what cannot be bisected."""

from collections.abc import Callable
from pathlib import Path

import pytest

import engines
from engines import backends
from pipeline.workflow.runner import Store
from tests.conftest import Result

# An engine that computes one kind of node otherwise than the graph says.
FAULTY = '''"""ONNX Runtime, wrong in average pooling."""

import onnx

from engines.backends._onnxruntime import OnnxRuntimeEngine


class Faulty(OnnxRuntimeEngine):
    def build(self, source, target, options):
        model = onnx.load(source)
        for node in model.graph.node:
            if node.op_type == "AveragePool":
                node.op_type = "MaxPool"
                kept = [each for each in node.attribute if each.name != "count_include_pad"]
                del node.attribute[:]
                node.attribute.extend(kept)
        onnx.save(model, target.with_name("changed"))
        return super().build(target.with_name("changed"), target, options)


ENGINE = Faulty("faulty", "CPUExecutionProvider", ("cpu",))
'''


@pytest.fixture
def faulty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "more_engines"
    folder.mkdir()
    (folder / "faulty.py").write_text(FAULTY)
    monkeypatch.setattr(backends, "__path__", [*backends.__path__, str(folder)])
    monkeypatch.delitem(__import__("sys").modules, "engines.backends.faulty", raising=False)


@pytest.mark.usefixtures("faulty")
def test_an_engine_that_does_not_do_what_the_graph_says_is_at_fault(
    store: Store, assay: Callable[..., Result], tmp_path: Path
) -> None:
    drawn = tmp_path / "growth.svg"
    words = ("verify", "lenet", "--bisect", "--root", store.root, "--engine", "faulty")
    result = assay(*words, "--plot", drawn)
    assert result.code == 3
    assert "first: AveragePool node 'node_avg_pool2d' (network.2: AvgPool2d)" in result.out
    assert "faulty does not do what the graph says" in result.out
    assert "faulty leaves the model at AveragePool node 'node_avg_pool2d'" in result.err
    assert "what is allowed" in drawn.read_text()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_without_a_fault_is_found_to_have_none(
    engine: str, store: Store, assay: Callable[..., Result]
) -> None:
    words = ("verify", "lenet", "--bisect", "--root", store.root)
    result = assay(*words, "--engine", engine)
    assert result.code == 0, result.err
    assert "all 14 values that could be compared are the model's" in result.out
    assert f"keep {engine} from fusing" in result.out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--engine", "pytorch"), 2, "runs the PyTorch program itself"),
        (("--engine", "tensorrt"), 4, "engine 'tensorrt' cannot be run here"),
        (("--engine", "onnxruntime,openvino"), 2, "one engine at a time"),
        (("--engine", "all"), 2, "one engine at a time"),
        (("--engine", "openvin"), 2, "did you mean 'openvino'?"),
        (("--engine", "openvino", "--device", "cuda"), 4, "runs on cpu"),
        (("--plot", "growth.gif"), 2, "available: .svg, .png, .pdf"),
        (("--plot", "nowhere/growth.svg"), 2, "is not a folder"),
    ],
)
def test_what_cannot_be_bisected_is_an_error(
    words: tuple[str, ...], code: int, said: str, built: Store, assay: Callable[..., Result]
) -> None:
    if "tensorrt" in words and engines.get("tensorrt").available().run:
        pytest.skip("this machine has TensorRT and a GPU")
    result = assay("verify", "lenet", "--bisect", "--root", built.root, *words)
    assert result.code == code
    assert said in result.err


def test_a_plot_is_of_a_bisection(built: Store, assay: Callable[..., Result]) -> None:
    result = assay("verify", "lenet", "--root", built.root, "--plot", "growth.svg")
    assert result.code == 2
    assert "add --bisect" in result.err

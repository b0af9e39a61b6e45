"""Bisection: who is at fault, plots, and what cannot be bisected."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import engines
from engines import backends
from pipeline.golden import file as goldens
from pipeline.verification.bisection.search import bisect
from pipeline.workflow.runner import Store
from tests.conftest import Result, need_engine
from tests.faults import FAULTS

Assay = Callable[..., Result]

# An engine that computes one kind of node wrongly.
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


@pytest.mark.slow(2)
@pytest.mark.usefixtures("faulty")
def test_an_engine_that_deviates_from_the_graph_is_at_fault(
    store: Store, assay: Callable[..., Result], tmp_path: Path
) -> None:
    drawn = tmp_path / "growth.svg"
    words = ("verify", "lenet", "--bisect", "--root", store.root, "--engine", "faulty")
    result = assay(*words, "--plot", drawn)
    assert result.code == 3
    assert "first: AveragePool node 'node_avg_pool2d' (network.2: AvgPool2d)" in result.out
    assert "faulty does not compute what the graph says" in result.out
    assert "faulty first differs from the model at AveragePool node 'node_avg_pool2d'" in result.err
    assert "in units of the limit" in drawn.read_text()
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow(1)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_without_a_fault_is_found_to_have_none(
    engine: str, store: Store, assay: Callable[..., Result]
) -> None:
    need_engine(engine)
    words = ("verify", "lenet", "--bisect", "--root", store.root)
    result = assay(*words, "--engine", engine)
    assert result.code == 0, result.err
    assert "all 14 compared values match the model" in result.out
    assert f"keep {engine} from fusing" in result.out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--engine", "pytorch"), 2, "runs the PyTorch program itself"),
        (("--engine", "tensorrt"), 4, "engine 'tensorrt' cannot be run here"),
        (("--engine", "onnxruntime,openvino"), 2, "takes one engine"),
        (("--engine", "all"), 2, "takes one engine"),
        (("--engine", "openvin"), 2, "did you mean 'openvino'?"),
        (("--engine", "openvino", "--device", "cuda"), 4, "runs on cpu"),
        (("--plot", "growth.gif"), 2, "available: .svg, .png, .pdf"),
        (("--plot", "nowhere/growth.svg"), 2, "is not a folder"),
    ],
)
def test_bisecting_an_unsuitable_engine_or_graph_is_an_error(
    words: tuple[str, ...], code: int, message: str, built: Store, assay: Callable[..., Result]
) -> None:
    if "tensorrt" in words and engines.get("tensorrt").available().run:
        pytest.skip("this machine has TensorRT and a GPU")
    if message == "runs on cpu":
        need_engine("openvino")
    result = assay("verify", "lenet", "--bisect", "--root", built.root, *words)
    assert result.code == code
    assert message in result.err


def test_wrong_usage_is_said_before_torch_is_imported(
    built: Store, assay: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: str) -> None:
        raise AssertionError("torch is imported")

    monkeypatch.setattr("pipeline.stages.need_torch", fail)
    for words in (("--engine", "all"), ("--precision", "int8"), ("--plot", "growth.gif")):
        assert assay("verify", "lenet", "--bisect", "--root", built.root, *words).code == 2


def test_plot_needs_bisect(built: Store, assay: Callable[..., Result]) -> None:
    result = assay("verify", "lenet", "--root", built.root, "--plot", "growth.svg")
    assert result.code == 2
    assert "add --bisect" in result.err


@pytest.mark.slow(2)
def test_complex_values_are_skipped(own: Callable[[str], str], assay: Assay) -> None:
    name = own("spectrum")
    assert assay("export", name).code == 0
    result = assay("verify", name, "--bisect")
    assert result.code == 0, result.err
    assert "compared values match the model" in result.out


@pytest.mark.slow(2)
def test_bisecting_an_engine_reports_faults_no_value_shows(store: Store, assay: Assay) -> None:
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    model.graph.output.append(onnx.ValueInfoProto(name=model.graph.node[-2].output[0]))
    path = store.root / "more.onnx"
    onnx.save(model, path)
    words = ("verify", "lenet", "--root", store.root, "--bisect", "--file", path)
    for engine in ("graph", "openvino"):
        if engine != "graph":
            need_engine(engine)
        result = assay(*words, "--engine", engine)
        assert result.code == 3
        assert "its outputs are" in result.err
    renamed = onnx.load(store.root / "lenet/fp32/model.onnx")
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "picture"
    onnx.save(renamed, path)
    result = assay(*words)
    assert result.code == 3
    assert "cannot be run on the golden inputs: its inputs are picture" in result.err


@pytest.mark.slow(4)
def test_a_changed_fp16_graph_is_at_fault(store: Store, assay: Assay) -> None:
    where = ("--root", store.root, "--precision", "fp16")
    assert assay("export", "lenet", *where).code == 0
    model = onnx.load(store.root / "lenet/fp16/model.onnx")
    (weight,) = (
        candidate for candidate in model.graph.initializer if candidate.name == "network.0.weight"
    )
    changed = onnx.numpy_helper.to_array(weight) * np.float16(1.5)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    path = store.root / "changed.onnx"
    onnx.save(model, path)
    for engine in ("graph", "openvino"):
        if engine != "graph":
            need_engine(engine)
        words = ("verify", "lenet", "--bisect", "--file", path, "--engine", engine)
        result = assay(*words, *where)
        assert result.code == 3
        assert "the graph itself differs from the model" in result.out


@pytest.mark.slow(1)
@pytest.mark.parametrize(
    "name",
    [
        "one weight off by 0.1",
        "weights rounded to bfloat16",
        "a dropped bias",
        "a swapped output channel",
        "a weight read in another layout",
        "a scale off by a hundredth",
        "another dilation",
        "padding on the other side",
        "a maximum for an average",
        "a missing activation",
        "another activation",
        "divided by 256 for 255",
        "bright pixels clipped",
        "classes off by one",
    ],
)
def test_bisection_names_the_planted_node_or_its_consumer(
    name: str, built: Store, tmp_path: Path
) -> None:
    (fault,) = (candidate for candidate in FAULTS if candidate.name == name)
    folder = built.root / "lenet/fp32"
    planted = fault.plant(onnx.load(folder / "model.onnx"), 1)
    assert planted is not None
    model, where = planted
    path = tmp_path / "planted.onnx"
    onnx.save(model, path)
    result = bisect(folder / "model.pt2", path, goldens.load(folder / "golden.npz"))
    assert result.first is not None
    (node,) = (candidate for candidate in model.graph.node if candidate.name == where)
    consumers = {n.name for n in model.graph.node if set(node.output) & set(n.input)}
    assert result.first.node in {where} | consumers
    assert "the graph itself differs from the model" in result.opinion


@pytest.mark.slow(2)
def test_bisect_prints_the_node_and_exits_3(store: Store, assay: Callable[..., Result]) -> None:
    where = ("--root", store.root)
    result = assay("verify", "lenet", "--bisect", *where)
    assert result.code == 0, result.err
    assert "all 14 compared values match the model" in result.out
    assert "network.3: Conv2d" in result.out
    (fault,) = (candidate for candidate in FAULTS if candidate.name == "a dropped bias")
    planted = fault.plant(onnx.load(store.root / "lenet/fp32/model.onnx"), 1)
    assert planted is not None
    onnx.save(planted[0], store.root / "planted.onnx")
    result = assay("verify", "lenet", "--bisect", "--file", store.root / "planted.onnx", *where)
    assert result.code == 3
    assert "first: Conv node 'node_conv2d_1' (network.3: Conv2d)" in result.out
    assert "first differs from the model at Conv node 'node_conv2d_1'" in result.err


@pytest.mark.slow(2)
def test_bisect_reports_faults_no_value_shows(store: Store, assay: Callable[..., Result]) -> None:
    where = ("--root", store.root)
    (fault,) = (candidate for candidate in FAULTS if candidate.name == "one weight off by 1e-06")
    planted = fault.plant(onnx.load(store.root / "lenet/fp32/model.onnx"), 1)
    assert planted is not None
    path = store.root / "planted.onnx"
    onnx.save(planted[0], path)
    result = assay("verify", "lenet", "--bisect", "--file", path, *where)
    assert result.code == 3
    assert "but weights that are not the checkpoint's: network.3.weight" in result.err
    renamed = onnx.load(store.root / "lenet/fp32/model.onnx")
    renamed.graph.output[0].name = renamed.graph.node[-1].output[0] = "scores"
    onnx.save(renamed, path)
    result = assay("verify", "lenet", "--bisect", "--file", path, *where)
    assert result.code == 3
    assert "its outputs are scores: float32[batch, 10]; expected logits" in result.err
    assert "1 nodes have no value of the same name in the model" in result.out


@pytest.mark.slow(1)
def test_a_graph_of_another_exporter_cannot_be_bisected(
    store: Store, assay: Callable[..., Result]
) -> None:
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    for node in model.graph.node:
        node.input[:] = [f"_{name}" if name.islower() else name for name in node.input]
        node.output[:] = [f"_{name}" for name in node.output]
    assert model.graph.node
    path = store.root / "renamed.onnx"
    onnx.save(model, path)
    words = ("verify", "lenet", "--bisect", "--root", store.root)
    result = assay(*words, "--file", path)
    assert result.code == 1
    assert "has the name of one of the model's" in result.err
    result = assay(*words, "--precision", "int8")
    assert result.code == 2
    assert "bisect the fp32 graph" in result.err
    assert assay(*words, "--file", store.root / "nothing.onnx").code == 1

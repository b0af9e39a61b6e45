"""Models of unusual types and operators, verified, bisected and built."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from engines.errors import DeployError
from pipeline.golden import file as goldens
from pipeline.workflow.runner import Store
from tests.conftest import Result

Assay = Callable[..., Result]

SOURCE = """
import numpy as np
import torch
from torch import nn

from pipeline.models import Model


class Whole(nn.Module):
    def forward(self, x):
        return {"next": x + 1}


class Truth(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        made = self.linear(x)
        return made, made > 0


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs() * 2


class Determinant(nn.Module):
    def forward(self, x):
        return torch.linalg.det(x.reshape(-1, 2, 4)[:, :, :2] + torch.eye(2))


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        made = self.linear(x).reshape(-1, 2, 4)
        return torch.einsum("b i d, b j d -> b i j", made, made)


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        made = self.linear(x)
        return {"given": x, "first": made, "second": made}


def numbers(dtype, size=1):
    return {"x": (np.random.default_rng(0).normal(size=(4, 8)) * size).astype(dtype)}


def whole():
    rows = np.random.default_rng(0).integers(2**60, 2**61, (4, 8))
    return Model(network=Whole(), inputs={"x": rows})


def truth():
    return Model(network=Truth(), inputs=numbers(np.float32))


def spectrum():
    return Model(network=Spectrum(), inputs=numbers(np.float32))


def einsum():
    return Model(network=Einsum(), inputs=numbers("float32"))


def repeated():
    return Model(network=Repeated(), inputs=numbers("float32"))


def determinant():
    return Model(network=Determinant(), inputs=numbers(np.float32))


class Quiet(nn.Module):
    def forward(self, x):
        return torch.tanh(x.float() * 1e-3)


def large():
    return Model(network=Quiet(), inputs=numbers(np.float16, 2000))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    name = f"unusual_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return lambda factory: f"{name}:{factory}"


def graph_of(name: str) -> Path:
    return Path("artifacts") / name.replace(":", "-") / "fp32/model.onnx"


def test_integers_have_to_be_the_very_ones(own: Callable[[str], str], assay: Assay) -> None:
    name = own("whole")
    assert assay("export", name).code == 0
    assert assay("verify", name).code == 0
    model = onnx.load(graph_of(name))
    (add,) = (node for node in model.graph.node if node.op_type == "Add")
    add.op_type = "Sub"
    onnx.save(model, "changed.onnx")
    assert assay("verify", name, "--file", "changed.onnx").code == 3
    result = assay("verify", name, "--bisect", "--file", "changed.onnx")
    assert result.code == 3
    assert "first: Sub node" in result.out
    assert "the graph says something else" in result.out


def test_truth_values_are_an_output_too(own: Callable[[str], str], assay: Assay) -> None:
    name = own("truth")
    assert assay("export", name).code == 0
    assert assay("verify", name).code == 0
    model = onnx.load(graph_of(name))
    (greater,) = (node for node in model.graph.node if node.op_type == "Greater")
    greater.op_type = "Less"
    onnx.save(model, "changed.onnx")
    assert assay("verify", name, "--file", "changed.onnx").code == 3


def test_complex_values_inside_are_passed_over(own: Callable[[str], str], assay: Assay) -> None:
    name = own("spectrum")
    assert assay("export", name).code == 0
    result = assay("verify", name, "--bisect")
    assert result.code == 0, result.err
    assert "could be compared are the model's" in result.out


def test_bf16_has_products_in_the_place_of_einsum(own: Callable[[str], str], assay: Assay) -> None:
    name = own("einsum")
    for precision, operator in (("fp32", "Einsum"), ("bf16", "MatMul")):
        words = ("--precision", precision)
        result = assay("export", name, *words)
        assert result.code == 0, result.err
        graph = onnx.load(graph_of(name).parent.with_name(precision) / "model.onnx").graph
        assert operator in {node.op_type for node in graph.node}
        assert assay("build", name, *words, "--engine", "pytorch,openvino").code == 0
        result = assay("verify", name, *words, "--engine", "pytorch,openvino")
        assert result.code == 0, result.err


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_input_or_one_tensor_twice_are_outputs_too(
    own: Callable[[str], str], assay: Assay, precision: str
) -> None:
    name, words = own("repeated"), ("--precision", precision)
    result = assay("export", name, *words)
    assert result.code == 0, result.err
    graph = onnx.load(graph_of(name).parent.with_name(precision) / "model.onnx").graph
    assert [each.name for each in graph.output] == ["given", "first", "second"]
    result = assay("verify", name, *words)
    assert result.code == 0, result.err


def test_large_examples_of_a_small_type_are_taken(own: Callable[[str], str], assay: Assay) -> None:
    name = own("large")
    result = assay("export", name)
    assert result.code == 0, result.err
    assert np.isfinite(goldens.load(graph_of(name).with_name("golden.npz")).inputs["x"]).all()
    assert assay("verify", name).code == 0


def test_of_all_engines_those_that_lack_an_operator_are_left_out(
    own: Callable[[str], str], assay: Assay
) -> None:
    name = own("determinant")
    result = assay("run", name, "--batch", "1", "--budget", "0.1")
    assert result.code == 0, result.err
    assert "build: without openvino: OpenVINO does not accept" in result.err
    assert "(Det)" in result.err
    assert "onnxruntime" in result.out
    result = assay("build", name, "--engine", "openvino")
    assert result.code == 1


def test_bisecting_an_engine_sees_what_no_value_shows(store: Store, assay: Assay) -> None:
    model = onnx.load(store.root / "lenet/fp32/model.onnx")
    model.graph.output.append(onnx.ValueInfoProto(name=model.graph.node[-2].output[0]))
    path = store.root / "more.onnx"
    onnx.save(model, path)
    words = ("verify", "lenet", "--root", store.root, "--bisect", "--file", path)
    for engine in ("graph", "openvino"):
        result = assay(*words, "--engine", engine)
        assert result.code == 3
        assert "its outputs are" in result.err
    renamed = onnx.load(store.root / "lenet/fp32/model.onnx")
    renamed.graph.input[0].name = renamed.graph.node[0].input[0] = "picture"
    onnx.save(renamed, path)
    result = assay(*words)
    assert result.code == 3
    assert "cannot be followed on the golden inputs: its inputs are picture" in result.err


def test_a_graph_in_fp16_that_says_something_else_is_at_fault(store: Store, assay: Assay) -> None:
    where = ("--root", store.root, "--precision", "fp16")
    assert assay("export", "lenet", *where).code == 0
    model = onnx.load(store.root / "lenet/fp16/model.onnx")
    (weight,) = (each for each in model.graph.initializer if each.name == "network.0.weight")
    changed = onnx.numpy_helper.to_array(weight) * np.float16(1.5)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    path = store.root / "changed.onnx"
    onnx.save(model, path)
    for engine in ("graph", "openvino"):
        words = ("verify", "lenet", "--bisect", "--file", path, "--engine", engine)
        result = assay(*words, *where)
        assert result.code == 3
        assert "the graph says something else than the model" in result.out


def test_a_golden_file_of_another_model_or_precision_is_refused(
    store: Store, own: Callable[[str], str], assay: Assay
) -> None:
    name = own("truth")
    assert assay("export", name).code == 0
    other = graph_of(name).with_name("golden.npz")
    words = ("verify", "lenet", "--root", store.root, "--golden", other)
    result = assay(*words, "--bisect")
    assert result.code in (1, 3)
    assert "bug" not in result.err
    graph = store.root / "lenet/fp32/model.onnx"
    assert assay(*words, "--file", graph).code == 3
    result = assay(*words, "--file", graph, "--precision", "fp16")
    assert result.code == 2
    assert "is of fp32, not of fp16" in result.err


def test_an_unknown_device_is_wrong_usage_whatever_runs(store: Store, assay: Assay) -> None:
    path = store.root / "lenet/fp32/model.onnx"
    words = ("verify", "lenet", "--root", store.root, "--file", path, "--device", "bogus")
    assert assay(*words).code == 2


def test_golden_files_with_classes_that_are_none_are_refused(built: Store, tmp_path: Path) -> None:
    with np.load(built.root / "lenet/fp32/golden.npz") as archive:
        arrays = dict(archive)
    for key, value in (("labels", arrays["labels"].astype("U3")), ("noise/logits", 1j)):
        changed = value if isinstance(value, np.ndarray) else arrays[key] * value
        np.savez(tmp_path / "golden.npz", **{**arrays, key: changed})
        with pytest.raises(DeployError, match="is not a golden file"):
            goldens.load(tmp_path / "golden.npz")


def test_a_bundle_that_fails_gives_one_document(store: Store, assay: Assay) -> None:
    bundle = store.dist / "lenet-fp32.tar.gz"
    good = assay("check", bundle, "--json")
    assert good.code == 0
    assert json.loads(good.out)

"""Exported graphs: their signature, their bytes, and models that cannot be exported."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters.module import Preprocess, Served
from exporters.onnx_graph import check_graph, export_graph
from exporters.onnx_nodes import spec_of
from exporters.program import export_program
from pipeline.workflow.runner import Store
from tests.conftest import Process, Result, need_engine
from tests.unusual import graph_of

Assay = Callable[..., Result]

IMAGE = TensorSpec("image", "uint8", (None, 1, 28, 28))
LOGITS = TensorSpec("logits", "float32", (None, 10))
EXAMPLES = [torch.zeros((2, 1, 28, 28), dtype=torch.uint8)]


@pytest.fixture
def graph(built: Store) -> onnx.ModelProto:
    return onnx.load(built.root / "lenet/fp32/model.onnx")


def test_the_graph_takes_raw_images_of_any_batch_and_gives_logits(graph: onnx.ModelProto) -> None:
    assert [spec_of(value) for value in graph.graph.input] == [IMAGE]
    assert [spec_of(value) for value in graph.graph.output] == [LOGITS]
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    onnx.checker.check_model(graph, full_check=True)


def test_metadata_describe_the_graph(graph: onnx.ModelProto, built: Store) -> None:
    metadata = {entry.key: entry.value for entry in graph.metadata_props}
    record = json.loads((built.root / "lenet/train.json").read_text())
    assert metadata["assay.model"] == "lenet"
    assert metadata["assay.preprocessing"] == "uint8 image / 255"
    assert len(json.loads(metadata["assay.labels"])) == 10
    digest = record["outputs"]["lenet/checkpoint.safetensors"]["sha256"]
    assert metadata["assay.checkpoint"] == digest


def test_the_graph_contains_no_path(built: Store) -> None:
    content = (built.root / "lenet/fp32/model.onnx").read_bytes()
    for trace in (b"site-packages", b".py", b"/tmp", b"/home", b"/root", b"pkg.torch"):
        assert trace not in content


@pytest.mark.slow(9)
def test_exports_in_two_folders_give_the_same_bytes(
    built: Store, tmp_path: Path, process: Callable[..., Process]
) -> None:
    graphs, goldens = [], []
    for name in ("one", "two/deep er"):
        folder = tmp_path / name
        shutil.copytree(built.root, folder / "artifacts")
        result = process("export", "lenet", "--force", cwd=folder).run()
        assert result.code == 0, result.err
        graphs.append((folder / "artifacts/lenet/fp32/model.onnx").read_bytes())
        goldens.append((folder / "artifacts/lenet/fp32/golden.npz").read_bytes())
    assert graphs[0] == graphs[1] == (built.root / "lenet/fp32/model.onnx").read_bytes()
    assert goldens[0] == goldens[1]


def test_the_preprocessing_inside_is_a_division_by_255() -> None:
    seen = {}

    class Keep(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen[x.dtype] = x
            return x

    image = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    Served(Keep(), Preprocess())(image)
    Served(Keep(), Preprocess(), torch.float64)(image)
    assert torch.equal(seen[torch.float32], image.float() / 255)
    assert torch.equal(seen[torch.float64], image.double() / 255)


class FixedBatch(nn.Module):
    """Fixes its batch to the one it was traced with."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().reshape(2, -1)[:, :10]


class ByValue(nn.Module):
    """Branches on the values of the pixels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.float().flatten(1)[:, :10]
        return x if x.sum() > 0 else -x


class BySize(nn.Module):
    """Treats a batch of two differently."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = image.float().flatten(1)
        if x.shape[0] == 2:
            return x[:, :10]
        return x[:, 10:20]


class Counting(nn.Module):
    """Takes as many pixels as the sum of the pixels."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float().flatten(1)[:, : int(image.sum())]


class Unfit(nn.Module):
    """Multiplies matrices whose shapes do not fit together."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.float() @ torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (FixedBatch(), r"fixes its batch \(axis 0 of image\) to 2.*reshape\(2, -1\)"),
        (BySize(), r"fixes its batch \(axis 0 of image\) to 2.*if x\.shape\[0\] == 2"),
        (ByValue(), r"depends on the values of a tensor.*return x if x\.sum\(\) > 0"),
        (Counting(), r"depends on the values of a tensor.*int\(image\.sum\(\)\)"),
        (Unfit(), r"shapes do not fit together.*@ torch\.zeros\(3, 3\)"),
    ],
)
def test_a_model_that_cannot_be_traced_is_an_error_that_names_the_line(
    module: nn.Module, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DeployError, match=words) as caught:
        export_program(module, EXAMPLES)
    assert (
        f"test_onnx_graph.py:{module.forward.__code__.co_firstlineno + 1}" in caught.value.message
        or ("test_onnx_graph.py:" in caught.value.message)
    )
    assert "Traceback" in caught.value.report
    assert len(caught.value.message) < 400
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")  # torch's own output is in the report


def test_the_report_of_a_failed_export_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, assay: Callable[..., Result]
) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "artifacts"
    result = assay("export", "mine:fixed", "--root", root)
    assert result.code == 1
    assert "mine.py:7 in forward" in result.err
    assert "axis 0 of x" in result.err
    report = root / "mine-fixed/fp32/export-failure.txt"
    assert str(report) in result.err
    assert "Constraints violated" in report.read_text()
    assert not (root / "mine-fixed/fp32/model.onnx").exists()
    # TorchScript traces what torch.export cannot, and warns of what may be frozen.
    assert assay("export", "mine:switch", "--root", root).code == 1
    result = assay("export", "mine:switch", "--root", root, "--exporter", "torchscript")
    assert result.code == 0, result.err
    assert "frozen by tracing?" in result.out
    assert not (root / "mine-switch/fp32/model.pt2").exists()
    document = json.loads((root / "mine-switch/fp32/graph.json").read_text())
    assert document["metadata"]["assay.exporter"] == "torchscript"
    assert assay("verify", "mine:switch", "--root", root).code == 0
    # A model that branches on its inputs would be frozen to the branch of the examples.
    result = assay("export", "mine:branch", "--root", root, "--exporter", "torchscript")
    assert result.code == 1
    assert "depends on the other rows of its batch" in result.err


OWN = """
import torch
from torch import nn
from pipeline.models import Model

class Fixed(nn.Linear):
    def forward(self, x): return super().forward(x) if len(x) != 2 else super().forward(1 * x)

class Branch(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if y.mean() > 0 else -y

class Switch(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("on", torch.ones(1))

    def forward(self, x):
        y = super().forward(x)
        return y if self.on.sum() > 0 else -y

def switch():
    return Model(network=Switch(), inputs={"x": torch.ones(2, 4).numpy()})

def fixed():
    return Model(network=Fixed(4, 3), inputs={"x": torch.ones(2, 4).numpy()})

def branch():
    x = torch.linspace(-9, 9, 40).reshape(10, 4).numpy()
    return Model(network=Branch(4, 3), inputs={"x": x})
"""


class Untranslatable(nn.Module):
    """Uses an operator that ONNX has no translation for."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.special.airy_ai(image.float().flatten(1)[:, :10])


@pytest.mark.filterwarnings("ignore")  # the exporter's own, on its way to failing
def test_an_operator_without_a_translation_is_named() -> None:
    program = export_program(Untranslatable(), EXAMPLES)
    with pytest.raises(DeployError, match="airy_ai"):
        export_graph(program, (IMAGE,), (LOGITS,), {})


def test_a_graph_with_another_signature_is_refused(graph: onnx.ModelProto) -> None:
    for wanted in (
        TensorSpec("picture", "uint8", (None, 1, 28, 28)),
        TensorSpec("image", "float32", (None, 1, 28, 28)),
        TensorSpec("image", "uint8", (8, 1, 28, 28)),
    ):
        with pytest.raises(DeployError, match="was expected"):
            check_graph(graph, (wanted,), (LOGITS,))


def test_a_foreign_operator_is_refused(graph: onnx.ModelProto) -> None:
    graph.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    graph.graph.node[1].domain = "com.example"
    with pytest.raises(DeployError, match="outside ONNX's standard"):
        check_graph(graph, (IMAGE,), (LOGITS,))


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_a_digest_error(
    store: Store, assay: Callable[..., Result], damage: str
) -> None:
    path = store.root / "lenet/checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[1000:]
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    before = (store.root / "lenet/fp32/model.onnx").read_bytes()
    result = assay("export", "lenet", "--root", store.root)
    assert result.code == 1
    assert "expected sha256" in result.err
    assert "checkpoint.safetensors" in result.err
    assert (store.root / "lenet/fp32/model.onnx").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    from pipeline import models
    from pipeline.training.weights import load

    network = models.get("lenet").build(None).network

    path = tmp_path / "other.safetensors"
    save_file({"0.weight": np.zeros((1, 1), np.float32)}, path)
    with pytest.raises(DeployError, match="does not hold the weights of lenet"):
        load(network, path, "lenet")
    path.write_bytes(b"not safetensors")
    with pytest.raises(DeployError, match="is not a safetensors file"):
        load(network, path, "lenet")


@pytest.mark.slow(2)
def test_bf16_einsums_become_matrix_products(own: Callable[[str], str], assay: Assay) -> None:
    name = own("einsum")
    for precision, operator in (("fp32", "Einsum"), ("bf16", "MatMul")):
        words = ("--precision", precision)
        result = assay("export", name, *words)
        assert result.code == 0, result.err
        graph = onnx.load(graph_of(name).parent.with_name(precision) / "model.onnx").graph
        assert operator in {node.op_type for node in graph.node}
        assert assay("build", name, *words, "--engine", "pytorch").code == 0
        result = assay("verify", name, *words, "--engine", "pytorch")
        assert result.code == 0, result.err
    need_engine("openvino")
    for precision in ("fp32", "bf16"):
        words = ("--precision", precision, "--engine", "openvino")
        assert assay("build", name, *words).code == 0
        result = assay("verify", name, *words)
        assert result.code == 0, result.err


@pytest.mark.slow(1)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_output_may_be_an_input_or_another_output(
    own: Callable[[str], str], assay: Assay, precision: str
) -> None:
    name, words = own("repeated"), ("--precision", precision)
    result = assay("export", name, *words)
    assert result.code == 0, result.err
    graph = onnx.load(graph_of(name).parent.with_name(precision) / "model.onnx").graph
    assert [tensor_info.name for tensor_info in graph.output] == ["given", "first", "second"]
    result = assay("verify", name, *words)
    assert result.code == 0, result.err

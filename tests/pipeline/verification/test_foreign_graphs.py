"""Graphs of the same model that other tools made: their weights have other names and forms."""

import io
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
import torch
from safetensors.torch import load_model, save_file
from torch import nn

from engines.errors import DeployError
from exporters.module import Served
from exporters.weight_match import Expectations, tensors_of
from pipeline import models
from pipeline.cli import stage_runs
from pipeline.verification import engine_proof, weight_audit
from pipeline.verification.verdict import Verdict
from pipeline.verification.weight_audit import Audit
from pipeline.workflow.runner import Store
from tests.conftest import Result
from tests.faults import FAULTS, Fault

Assay = Callable[..., Result]

SOURCE = """
import numpy as np
import torch
from torch import nn

from pipeline.models import Model


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.other = nn.Conv2d(6, 6, 3, groups=6, bias=False), nn.BatchNorm2d(6)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)
        self.third, self.fourth = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        x = (self.other(self.second(x)) * self.scale).relu()
        x = self.fourth(self.third(x).relu()).relu()
        return self.head(x.mean((2, 3)))


def make():
    torch.manual_seed(0)
    network = Small()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    inputs = np.random.default_rng(0).normal(size=(8, 2, 6, 6)).astype(np.float32)
    return Model(network=network, inputs={"x": inputs})
"""


def served(name: str, root: Path) -> tuple[Served, models.Model]:
    """Returns the module that a user would give to another tool."""
    model = models.get(name).build(None)
    (checkpoint,) = root.glob("*/checkpoint.safetensors")
    load_model(model.network, checkpoint)
    return Served(model.network, model.prepare).eval(), model


def by_dynamo(module: nn.Module, example: torch.Tensor, **more: object) -> onnx.ModelProto:
    exported = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=(({0: torch.export.Dim.DYNAMIC},),),
        verbose=False,
        **more,
    )
    return exported.model_proto


def by_torchscript(module: nn.Module, example: torch.Tensor, **more: object) -> onnx.ModelProto:
    file = io.BytesIO()
    names = [*more["input_names"], *more["output_names"]]
    axes = {name: {0: "batch"} for name in names}
    torch.onnx.export(module, (example,), file, dynamo=False, dynamic_axes=axes, **more)
    return onnx.load_model_from_string(file.getvalue())


def slimmed(model: onnx.ModelProto, _folder: Path) -> onnx.ModelProto:
    return onnxslim.slim(model)


def optimized(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    content = model.SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimized.onnx")


EXPORTERS = {
    "dynamo": by_dynamo,
    "dynamo, unoptimized": lambda *args, **more: by_dynamo(*args, optimize=False, **more),
    "torchscript": by_torchscript,
    "torchscript, batch norms kept": lambda *args, **more: by_torchscript(
        *args, training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False, **more
    ),
}
TOOLS = {"plain": lambda model, _folder: model, "onnxslim": slimmed, "ONNX Runtime": optimized}
MADE = [(exporter, tool) for exporter in EXPORTERS for tool in TOOLS]


def foreign(name: str, root: Path, exporter: str) -> onnx.ModelProto:
    module, model = served(name, root)
    if model.image is None:
        names, output = [*model.inputs], "output"
        example = torch.from_numpy(next(iter(model.inputs.values()))[:2])
    else:
        names, output = [models.IMAGE], models.LOGITS
        example = torch.zeros(2, *model.image, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return EXPORTERS[exporter](module, example, input_names=names, output_names=[output])


@dataclass
class Exported:
    """An exported model, and other tools' graphs of it.

    Attributes:
        graphs: By the names of the exporter and of the tool that changed its graph.
    """

    name: str
    root: Path
    graphs: dict[tuple[str, str], onnx.ModelProto] = field(default_factory=dict)

    @property
    def golden(self) -> Path:
        (path,) = self.root.glob("*/*/golden.npz")
        return path

    def graph(self, exporter: str, tool: str = "plain") -> onnx.ModelProto:
        """Returns a copy of a graph."""
        if (exporter, "plain") not in self.graphs:
            self.graphs[exporter, "plain"] = foreign(self.name, self.root, exporter)
        if (exporter, tool) not in self.graphs:
            self.graphs[exporter, tool] = TOOLS[tool](self.graphs[exporter, "plain"], self.root)
        copied = onnx.ModelProto()
        copied.CopyFrom(self.graphs[exporter, tool])
        return copied

    @cached_property
    def expected(self) -> Expectations:
        return weight_audit._expectations(weight_audit.program_beside(self.golden))

    def audit(self, model: onnx.ModelProto) -> Audit:
        return weight_audit._by_values(tensors_of(model), self.expected)

    def prove(self, model: onnx.ModelProto) -> Verdict:
        path = self.root / "judged.onnx"
        onnx.save(model, path)
        return engine_proof.prove(
            "graph", path, self.golden, "fp32", device="auto", threads=1, elsewhere=True
        )


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("small")
    (folder / "small.py").write_text(SOURCE)
    exported = Exported("small.py:make", folder / "artifacts")
    store = Store(exported.root, folder / "dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        stage_runs.run_command("export", {"model": exported.name}, store, {})
        for exporter in EXPORTERS:
            exported.graph(exporter)
    return exported


@pytest.fixture
def verify(small: Exported, monkeypatch: pytest.MonkeyPatch, assay: Assay) -> Callable[..., Result]:
    """Judges a file as a graph of the small model."""
    monkeypatch.chdir(small.root.parent)
    return lambda file, *words: assay("verify", small.name, "--file", file, *words)


def numbers(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Returns all weights: numbers, and more than the mean of each color."""
    return [t for t in model.graph.initializer if math.prod(t.dims) > 3 and t.data_type == 1]


def change(tensor: onnx.TensorProto, factor: float = 1 + 1e-4) -> None:
    """Changes the largest number of a tensor; a zero becomes `factor - 1`."""
    values = onnx.numpy_helper.to_array(tensor).copy()
    index = int(np.abs(values).argmax())
    values.flat[index] = values.flat[index] * np.float32(factor) or factor - 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


@pytest.mark.slow(2)
@pytest.mark.parametrize(("exporter", "tool"), MADE)
def test_every_weight_is_found_and_a_change_of_any_is_named(
    small: Exported, exporter: str, tool: str
) -> None:
    model = small.graph(exporter, tool)
    audit = small.audit(model)
    assert audit.identical == 18
    assert not audit.fault
    assert not audit.unaudited
    for tensor in numbers(model):
        before = onnx.TensorProto()
        before.CopyFrom(tensor)
        change(tensor)
        audit = small.audit(model)
        assert audit.changed, tensor.name
        assert all(tensor.name in name for name in audit.changed)
        tensor.CopyFrom(before)


@pytest.mark.slow(2)
@pytest.mark.parametrize(("exporter", "tool"), MADE)
def test_the_verdict_is_a_pass(
    small: Exported, exporter: str, tool: str, tmp_path: Path, verify: Callable[..., Result]
) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(small.graph(exporter, tool), path)
    result = verify(path)
    assert result.code == 0, result.err
    assert "not audited" not in result.out
    model = onnx.load(path)
    change(numbers(model)[0])
    onnx.save(model, path)
    result = verify(path)
    assert result.code == 3
    assert "weights that are not the checkpoint's: network." in result.err


WEIGHT_FAULTS = [fault for fault in FAULTS if fault.weight and "quantization" not in fault.name]
# Numbers in another order or of another sign may be a tool's doing. The outputs show these.
BY_OUTPUTS = {
    "a bias of another layer's sign",
    "a swapped output channel",
    "a weight read in another layout",
}


@pytest.mark.slow(1)
@pytest.mark.parametrize("exporter", ["torchscript", "dynamo, unoptimized"])
@pytest.mark.parametrize("fault", WEIGHT_FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(small: Exported, exporter: str, fault: Fault) -> None:
    for place in range(3):
        planted = fault.plant(small.graph(exporter), place)
        if planted is None:
            assert fault.name == "a weight read in another layout"  # one of a depthwise layer
            continue
        verdict = small.prove(planted[0])
        assert verdict.status == "mismatch", place
        assert verdict.audit.changed or fault.name in BY_OUTPUTS


def test_a_right_copy_that_no_output_depends_on_proves_nothing(small: Exported) -> None:
    model = small.graph("torchscript")
    tensor = numbers(model)[0]
    model.graph.initializer.add().CopyFrom(tensor)
    model.graph.initializer[-1].name = "spare"
    model.graph.node.append(onnx.helper.make_node("Identity", ["spare"], ["dead"]))
    change(tensor)
    assert tensor.name in small.audit(model).fault


def test_without_the_program_the_audit_says_what_it_could_not_confirm(
    small: Exported, tmp_path: Path, verify: Callable[..., Result]
) -> None:
    alone = tmp_path / "golden.npz"
    alone.write_bytes(small.golden.read_bytes())
    own, other = tmp_path / "own.onnx", tmp_path / "other.onnx"
    model = onnx.load(small.golden.with_name("model.onnx"))
    onnx.save(model, own)
    result = verify(own, "--golden", alone)
    assert result.code == 0
    assert "not audited" not in result.out
    onnx.save(small.graph("torchscript"), other)
    result = verify(other, "--golden", alone)
    assert result.code == 0, result.err
    assert "not audited: network." in result.out
    assert f"no exported program of the same export beside {alone}" in result.out
    change(numbers(model)[0])  # still known as assay's own graph by its metadata
    onnx.save(model, own)
    assert verify(own, "--golden", alone).code == 3


def test_a_program_of_another_export_is_not_used(small: Exported, tmp_path: Path) -> None:
    for file in small.golden.parent.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    golden = tmp_path / "golden.npz"
    assert weight_audit.program_beside(golden) == tmp_path / "model.pt2"
    with (tmp_path / "model.pt2").open("ab") as file:
        file.write(b" ")
    with pytest.raises(DeployError, match="no exported program of the same export"):
        weight_audit.program_beside(golden)


def test_bisection_does_not_call_the_weights_of_another_tool_changed(
    small: Exported, tmp_path: Path, verify: Callable[..., Result]
) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(small.graph("dynamo"), path)
    result = verify(path, "--bisect")
    assert result.code == 0, result.err
    model = onnx.load(path)
    change(numbers(model)[0])
    onnx.save(model, path)
    assert verify(path, "--bisect").code == 3


def trained_norms(name: str) -> dict[str, torch.Tensor]:
    """Returns a model's new weights, with numbers in the batch norms that are not 0 or 1."""
    torch.manual_seed(0)
    state = models.get(name).build(None).network.state_dict()
    for tensor in state.values():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.uniform_(0.5, 1.5)
    return state


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_torchvision_models_are_audited_in_full(name: str, tmp_path: Path, assay: Assay) -> None:
    save_file(trained_norms(name), tmp_path / "weights.safetensors")
    root, path = tmp_path / "artifacts", tmp_path / "other.onnx"
    weights = ("--weights", tmp_path / "weights.safetensors")
    assert assay("export", name, "--root", root, *weights).code == 0
    exported = Exported(name, root)
    for exporter, tool in itertools.product(("dynamo", "torchscript"), TOOLS):
        model = exported.graph(exporter, tool)
        audit = exported.audit(model)
        assert not audit.fault, (exporter, tool)
        assert not audit.unaudited, (exporter, tool)
        assert audit.identical == len(exported.expected.parameters)
        tensors = numbers(model)
        kinds = {len(tensor.dims): tensor for tensor in tensors}  # a bias, a linear layer's, a conv
        assert set(kinds) >= {1, 2, 4}
        for tensor in kinds.values():
            before = onnx.TensorProto()
            before.CopyFrom(tensor)
            change(tensor)
            changed = exported.audit(model).changed
            assert changed, (exporter, tool, tensor.name)
            assert all(tensor.name in each for each in changed)
            tensor.CopyFrom(before)
        if tool != "plain" or exporter == "dynamo":
            onnx.save(model, path)
            result = assay("verify", name, "--root", root, "--file", path)
            assert result.code == 0, result.err
            assert "not audited" not in result.out

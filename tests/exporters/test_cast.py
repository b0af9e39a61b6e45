"""fp16 and bf16: types inside the graph, and layers that would overflow."""

import json
from collections.abc import Callable

import onnx
import pytest
import torch
from torch import nn

from exporters.cast import cast_to_precision
from exporters.program import export_program
from pipeline.workflow.runner import Store
from tests.conftest import Result

TYPES = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


@pytest.mark.slow(3)
@pytest.mark.parametrize("precision", TYPES)
def test_all_stages_run_at_each_precision(
    store: Store, assay: Callable[..., Result], precision: str
) -> None:
    where = ("--root", store.root, "--dist", store.dist, "--batch", 1, "--budget", 0.1)
    result = assay("run", "lenet", "--precision", precision, *where, "--json")
    assert result.code == 0, result.err
    verdicts = json.loads(result.out)["summary"]["verdicts"]
    status = {name: verdict["status"] for name, verdict in verdicts.items()}
    assert status["pytorch"] == "pass"
    if precision == "fp16":
        assert status["graph"] == status["onnxruntime"] == "pass"
    else:
        assert status["graph"] == "not run"
        assert "no CPU kernel" in verdicts["graph"]["reason"]
        assert "onnxruntime" not in status
        assert "build: without onnxruntime" in result.err
    audit = verdicts["graph"]["audit"]
    assert audit["identical"] == 10
    assert not any(value for key, value in audit.items() if key != "identical")


@pytest.mark.slow(1)
@pytest.mark.parametrize("precision", TYPES)
def test_inputs_and_logits_keep_their_types_and_layers_use_the_precision(
    store: Store, assay: Callable[..., Result], precision: str
) -> None:
    assert assay("export", "lenet", "--precision", precision, "--root", store.root).code == 0
    model = onnx.load(store.root / "lenet" / precision / "model.onnx")
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    types |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "AveragePool")]
    assert len(layers) == 7
    assert {types[node.output[0]] for node in layers} == {TYPES[precision]}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert types["logits"] == onnx.TensorProto.FLOAT


class Steep(nn.Module):
    """Its middle layer outputs numbers beyond the range of fp16."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.steep = nn.Linear(4, 4)
        self.flat = nn.Linear(4, 4)
        with torch.no_grad():
            self.steep.weight.fill_(1e5)
            self.flat.weight.fill_(1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(self.steep(self.first(x)))


def test_layers_that_overflow_stay_in_fp32_and_are_listed() -> None:
    torch.manual_seed(0)
    network, x = Steep().eval(), torch.rand(8, 4)
    small, kept = cast_to_precision(network, "fp16", lambda net: net(x))
    assert kept == ("steep", "flat")  # "flat" takes the large outputs of "steep"
    assert small.first.weight.dtype == torch.float16
    assert small.steep.weight.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(small(x.half()).float(), network(x), rtol=1e-2)
        assert not torch.isfinite(network.half()(x.half())).all()


class Sum(nn.Module):
    """Its layers output numbers within the range of fp16; their sum is beyond it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.flat = (nn.Linear(1, 1, bias=False) for _ in range(3))
        for layer, weight in ((self.one, 3e4), (self.two, 3e4), (self.flat, 1e-5)):
            nn.init.constant_(layer.weight, weight)
        self.block = Both(self.one, self.two)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.flat(torch.tanh(self.block(x) * 1e-6))


class Both(nn.Module):
    def __init__(self, one: nn.Module, two: nn.Module) -> None:
        super().__init__()
        self.one, self.two = one, two

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) + self.two(x) + self.one(x)


def test_a_sum_beyond_fp16_is_computed_in_fp32() -> None:
    network, x = Sum().eval(), torch.ones(2, 1)
    small, kept = cast_to_precision(network, "fp16", lambda net: net(x))
    assert kept == ("one",)
    with torch.no_grad():
        assert torch.allclose(small(x.half()).float(), network(x), rtol=1e-2)
        assert not torch.isfinite(network.half().block(x.half())).all()


def test_batch_norms_next_to_a_fp32_layer_are_still_folded() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.rest = Steep()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(self.norm(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    x = torch.rand(2, 1, 5, 5)
    small, kept = cast_to_precision(Mixed().eval(), "fp16", lambda net: net(x))
    assert kept
    program = export_program(small, [x.half()])
    casts = [node for node in program.graph.nodes if "aten.to" in str(node.target)]
    for node in casts:
        assert node.meta["val"].dtype != node.args[0].meta["val"].dtype
    assert len(casts) == 1  # in front of the layers in fp32


def test_bf16_has_the_range_of_fp32() -> None:
    network, x = Steep().eval(), torch.rand(8, 4)
    _, kept = cast_to_precision(network, "bf16", lambda net: net(x))
    assert kept == ()


def test_fp32_is_the_network_itself() -> None:
    network = Steep().eval()
    assert cast_to_precision(network, "fp32", lambda net: net(torch.rand(1, 4))) == (network, ())
    assert network.first.weight.dtype == torch.float32

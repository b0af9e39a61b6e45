"""fp16 and bf16: types inside the graph, and layers that would overflow."""

import json
from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from engines.contract import TensorSpec
from exporters.cast import cast_to_precision, dtype_of, keep_in_range
from exporters.module import Served
from exporters.onnx_graph import export_graph
from exporters.program import export_program
from exporters.ranges import OutOfRange
from exporters.weight_map import trace_weights
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
    assert status["graph"] == status["pytorch"] == "pass"
    if precision == "fp16":
        assert status["onnxruntime"] == "pass"
    else:
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


def half(network: nn.Module, *inputs: torch.Tensor, precision: str = "fp16") -> tuple[Any, Any]:
    """Returns the program of a network at a precision, and what is kept in fp32."""
    dtype = dtype_of(precision)
    served = Served(cast_to_precision(network, precision), None, dtype).eval()
    program = export_program(served, [tensor[:2] for tensor in inputs])
    originals = Served(network, None).state_dict()
    return keep_in_range(program, precision, originals, lambda run: run(*inputs))


def kept_names(kept: tuple[OutOfRange, ...]) -> list[str]:
    return [value.name for value in kept]


def test_values_that_overflow_stay_in_fp32_with_their_weights_and_are_listed() -> None:
    torch.manual_seed(0)
    network, x = Steep().eval(), torch.rand(8, 4)
    program, kept = half(network, x)
    # What reads a value in fp32 computes in fp32, too, and so keeps its own weights.
    assert kept_names(kept) == ["network.steep.weight", "linear of network.steep: Linear"]
    assert "holds 1e+05 (fp16 holds 6.55e+04)" in str(kept[0])
    types = {name: tensor.dtype for name, tensor in program.state_dict.items()}
    assert types["network.first.weight"] == torch.float16
    assert types["network.steep.weight"] == types["network.flat.weight"] == torch.float32
    with torch.no_grad():
        assert torch.allclose(program.module()(x)[0], network(x), rtol=1e-2)
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
    program, kept = half(network, x)
    assert "add of network.block: Both" in kept_names(kept)
    with torch.no_grad():
        assert torch.allclose(program.module()(x)[0], network(x), rtol=1e-2)
        assert not torch.isfinite(network.half().block(x.half())).all()


class InPlace(nn.Module):
    """It squares in place: what reads the tensor afterwards reads the square."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(x)) * 400
        x.mul_(x)
        return self.head(x.mean((2, 3)) / 1e5)


def test_what_is_computed_in_place_is_kept_in_fp32_too() -> None:
    torch.manual_seed(0)
    network, x = InPlace().eval(), torch.rand(4, 1, 5, 5)
    program, kept = half(network, x)
    assert "mul of network: InPlace" in kept_names(kept)
    with torch.no_grad():
        assert torch.allclose(program.module()(x)[0], network(x), rtol=2e-2)
    outputs = (TensorSpec("output", "float32", (None, 2)),)
    inputs = (TensorSpec("x", "float32", (None, 1, 5, 5)),)
    graph = next(export_graph(program, inputs, outputs, {}).graphs)
    assert "BatchNormalization" not in [node.op_type for node in graph.graph.node]
    carried = trace_weights(program, graph, 6)
    held = [onnx.numpy_helper.to_array(tensor).tobytes() for tensor in graph.graph.initializer]
    for name in ("network.conv.weight", "network.norm.weight", "network.head.weight"):
        assert carried[name].tobytes() in held


def test_beside_values_in_fp32_batch_norms_are_still_folded() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
            self.rest = Steep()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(self.norm(self.conv(x)).mean((2, 3)))

    torch.manual_seed(0)
    x = torch.rand(2, 1, 5, 5)
    program, kept = half(Mixed().eval(), x)
    assert kept
    casts = [node for node in program.graph.nodes if "copy" in str(node.target)]
    assert len(casts) == 2  # in front of the layers in fp32, and behind them
    specs = (
        (TensorSpec("x", "float32", (None, 1, 5, 5)),),
        (TensorSpec("output", "float32", (None, 4)),),
    )
    graph = next(export_graph(program, *specs, {}).graphs)
    assert "BatchNormalization" not in [node.op_type for node in graph.graph.node]


def test_bf16_has_the_range_of_fp32() -> None:
    _, kept = half(Steep().eval(), torch.rand(8, 4), precision="bf16")
    assert kept == ()


def test_fp32_is_the_network_itself() -> None:
    network = Steep().eval()
    assert cast_to_precision(network, "fp32") is network
    assert network.first.weight.dtype == torch.float32

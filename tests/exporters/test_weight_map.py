"""Which tensor of a graph carries each parameter, folded batch norms included."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from engines.contract import TensorSpec
from exporters.module import Served
from exporters.onnx_graph import export_graph, trace_graph
from exporters.program import export_program
from exporters.weight_map import expectations, trace_weights, traced_weights
from exporters.weight_match import changed, match, tensors_of
from pipeline.verification import limits
from pipeline.verification.weight_audit import audit_model, weights_of


def filled(module: nn.Module) -> nn.Module:
    random = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            low = 0.5 if name.endswith(("var", "weight")) else -1.0
            tensor.copy_(torch.rand(tensor.shape, generator=random) * (2 - low) + low)
    return module.eval()


def exported(
    module: nn.Module, shape: tuple[int, ...], opset: int | None = None
) -> tuple[object, onnx.ModelProto]:
    example = torch.zeros(2, *shape)
    with torch.no_grad():
        outputs = module(example)
    program = export_program(module, [example])
    inputs = (TensorSpec("x", "float32", (None, *shape)),)
    specs = (TensorSpec("y", "float32", (None, *outputs.shape[1:])),)
    return program, next(export_graph(program, inputs, specs, {}, opset).graphs)


def unexplained(module: nn.Module, program: object, graph: onnx.ModelProto) -> set[str]:
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer
    }
    traced = trace_weights(program, graph, limits.WEIGHT_ROUNDINGS)
    wanted = {n for n in module.state_dict() if not n.endswith("num_batches_tracked")}
    assert {name.partition(" (in ")[0] for name in traced} == wanted
    return {
        name
        for name, value in traced.items()
        if not any(np.array_equal(value, constant) for constant in tensors.values())
    }


class Positions(nn.Module):
    """Adds rows of a table by a constant index, as attention by relative positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(7, 4))
        self.register_buffer("index", torch.tensor([3, 1, 6, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(1) + self.table[self.index].permute(1, 0).unsqueeze(0)


class Distances(nn.Module):
    """Adds a small network's output for constants, as attention with continuous positions does."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 4, bias=False))
        self.register_buffer("distances", torch.linspace(-1, 1, 12).reshape(6, 2))
        self.register_buffer("index", torch.tensor([3, 1, 5, 0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.unsqueeze(1) + 16 * torch.sigmoid(self.small(self.distances)[self.index])


class Table(nn.Module):
    """So many distances that in bfloat16 only the first product is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.small = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, 4, bias=False))
        self.register_buffer("distances", torch.linspace(-1, 1, 162).reshape(1, 9, 9, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.bfloat16() + self.small(self.distances).mean((0, 1, 2))).float()


class Scaled(nn.Module):
    """Scales and shifts channels by parameters and numbers, which ONNX Runtime folds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.scale, self.shift = (
            nn.Parameter(torch.ones(3, 1, 1)),
            nn.Parameter(torch.ones(3, 1, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.norm(self.conv(x)) * self.scale - self.shift) / 3


class Pieces(nn.Module):
    """Splits a weight as attention over another sequence does, and numbers its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Parameter(torch.zeros(12, 4))
        self.positions = nn.Embedding(9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = self.both.split([4, 8])
        places = x.unsqueeze(1) + self.positions(torch.arange(3))
        return nn.functional.linear(nn.functional.linear(places, first).relu(), second)


class Last(nn.Module):
    """The output of a recurrent layer without its state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0]


LAYERS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "plain": lambda: (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU()), (2, 5, 5)),
    "with bias": lambda: (nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)), (2, 5, 5)),
    "without bias": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)),
        (2, 5, 5),
    ),
    "grouped": lambda: (
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4)),
        (4, 5, 5),
    ),
    "transposed, in groups": lambda: (
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)),
        (4, 5, 5),
    ),
    "split, and numbered": lambda: (Pieces(), (4,)),
    "transposed, one axis": lambda: (
        nn.Sequential(nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d(6)),
        (4, 5),
    ),
    "padded to the same size": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3, padding="same"), nn.BatchNorm2d(3)),
        (2, 5, 5),
    ),
    "linear": lambda: (nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7)), (5,)),
    "linear, of another axis": lambda: (
        nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(3)),
        (3, 5),
    ),
    "scaled and shifted": lambda: (Scaled(), (2, 5, 5)),
    "LSTM": lambda: (Last(nn.LSTM(4, 6, 2, bidirectional=True, batch_first=True)), (5, 4)),
    "GRU": lambda: (Last(nn.GRU(4, 6, batch_first=True)), (5, 4)),
    "RNN": lambda: (Last(nn.RNN(4, 6, bias=False, batch_first=True)), (5, 4)),
    "two in a row": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
        (2, 5, 5),
    ),
    "alone": lambda: (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2)), (2, 5, 5)),
    "transposed for a product": lambda: (nn.Linear(6, 4), (5, 6)),
    "attention": lambda: (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=torch.tanh),
        (5, 8),
    ),
    "picked from a table": lambda: (Positions(), (4,)),
    "made by a small network": lambda: (Distances(), (4,)),
    "behind an activation": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.BatchNorm2d(3)),
        (2, 5, 5),
    ),
}


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_is_found_in_the_graph(name: str) -> None:
    module, shape = LAYERS[name]()
    module = filled(module)
    assert not unexplained(module, *exported(module, shape))


@pytest.mark.slow(1)
@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated, and warns of what it freezes
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "linear"])
def test_weights_are_found_in_a_graph_by_torchscript(name: str) -> None:
    module, shape = LAYERS[name]()
    served = Served(filled(module), None).eval()
    (outputs,) = served(torch.zeros(2, *shape))
    inputs = (TensorSpec("x", "float32", (None, *shape)),)
    specs = (TensorSpec("y", "float32", (None, *outputs.shape[1:])),)
    graph, _ = trace_graph(served, [torch.zeros(2, *shape)], inputs, specs, {})
    weights = weights_of(traced_weights(served, graph, limits.WEIGHT_ROUNDINGS), graph)
    known = {f"network.1.{part}" for part in ("weight", "bias", "running_mean", "running_var")}
    norm = {*known, "network.1.num_batches_tracked"} if name == "linear" else set()
    assert set(weights.uncarried) <= norm
    tensor = max(graph.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.ravel()[1] *= np.float32(1 + 2e-7)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    weights = weights_of(traced_weights(served, graph, limits.WEIGHT_ROUNDINGS), graph)
    assert set(weights.uncarried) - norm


@pytest.mark.slow(1)
def test_a_batch_norm_behind_a_bias_of_zeros_is_found() -> None:
    module, shape = LAYERS["with bias"]()
    module = filled(module)
    module[0].bias.data.zero_()
    assert not unexplained(module, *exported(module, shape))


@pytest.mark.slow(1)
def test_a_value_computed_from_other_weights_is_not_matched() -> None:
    module = filled(LAYERS["made by a small network"]()[0])
    _, graph = exported(module, (4,))
    module.small[0].weight.data[3, 1] *= 1.001
    program, _ = exported(module, (4,))
    assert unexplained(module, program, graph) >= {"small.0.weight"}


@pytest.mark.slow(1)
def test_a_product_folded_without_its_bias_is_found() -> None:
    module = filled(Table()).bfloat16()
    program, graph = exported(module, (4,), opset=22)
    names = {tensor.name for tensor in graph.graph.initializer}
    assert "small.0.bias" in names
    assert not names & {"small.0.weight", "distances"}
    assert not unexplained(module, program, graph)


@pytest.mark.slow(1)
@pytest.mark.parametrize("name", ["transposed for a product", "picked from a table"])
def test_moved_numbers_have_to_match_bit_for_bit(name: str) -> None:
    module, shape = LAYERS[name]()
    module = filled(module)
    program, graph = exported(module, shape)
    tensor = max(graph.graph.initializer, key=lambda each: len(each.raw_data))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.ravel()[1] *= np.float32(1 + 2e-7)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    assert unexplained(module, program, graph)


def test_each_piece_of_a_split_weight_has_an_entry() -> None:
    module = filled(Pieces())
    program, graph = exported(module, (4,))
    traced = trace_weights(program, graph, limits.WEIGHT_ROUNDINGS)
    pieces = {name: value.size for name, value in traced.items() if name.startswith("both")}
    assert sorted(pieces.values()) == [16, 32]
    before = audit_model(graph, weights_of(traced, graph), Path("model.onnx"))
    assert (before.identical, before.fault, before.gap) == (3, "", "")
    for tensor in graph.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.size not in pieces.values():
            continue
        changed_graph = onnx.ModelProto()
        changed_graph.CopyFrom(graph)
        (copy,) = (t for t in changed_graph.graph.initializer if t.name == tensor.name)
        nearly = values * np.float32(1 + 2e-7)
        copy.CopyFrom(onnx.numpy_helper.from_array(nearly, tensor.name))
        audit = audit_model(changed_graph, weights_of(traced, graph), Path("model.onnx"))
        assert "weights that are not in the graph: both" in audit.fault


@pytest.mark.slow(1)
@pytest.mark.parametrize("part", ["weight", "bias"])
@pytest.mark.parametrize("change", [1.0001, 1 + 2e-6, 0.9, 0.0])
def test_a_wrong_fold_is_not_matched(part: str, change: float) -> None:
    module, shape = LAYERS["with bias"]()
    module = filled(module)
    program, graph = exported(module, shape)
    (tensor,) = (
        candidate for candidate in graph.graph.initializer if candidate.name == f"0.{part}"
    )
    values = onnx.numpy_helper.to_array(tensor) * np.float32(change)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    assert unexplained(module, program, graph) >= {f"0.{part}"}


@pytest.mark.slow(1)
def test_a_fold_with_another_epsilon_is_not_matched() -> None:
    module, shape = LAYERS["with bias"]()
    module = filled(module)
    _, graph = exported(module, shape)
    module[1].eps = 2e-5
    program, _ = exported(module, shape)
    assert unexplained(module, program, graph) >= {"0.weight", "0.bias"}


@pytest.mark.slow(1)
def test_ones_and_zeros_of_a_folded_batch_norm_are_not_found_in_another_one() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))
    program, graph = exported(module.eval(), (2, 5, 5))
    expected, tensors = expectations(program), tensors_of(graph)
    right = match(expected, tensors, limits.WEIGHT_ROUNDINGS)
    assert right.carriers.keys() == expected.parameters.keys()
    tensors["0.bias"] = tensors["0.bias"] * np.float32(1 + 1e-4)
    wrong = match(expected, tensors, limits.WEIGHT_ROUNDINGS)
    names = {"0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert changed(expected, tensors, wrong) == dict.fromkeys(names, "0.bias")

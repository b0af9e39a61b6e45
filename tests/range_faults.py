"""Modules that are right in float32 and leave the range of float16 on the way to their outputs.

Most give outputs that are plain numbers in float16, too, and wrong.
"""

import copy
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

import engines
from engines.contract import OpenOptions
from exporters.module import Served
from exporters.onnx_graph import export_graph
from exporters.program import export_program
from pipeline.exporting import calibration
from pipeline.exporting.graphs import Exported, Source, export
from pipeline.exporting.precision import Cast, at_precision
from pipeline.golden import rows
from pipeline.golden.file import Golden
from pipeline.golden.reference import ExactModel, make_reference
from pipeline.golden.reference_cache import ReferenceCache
from pipeline.models import Model
from pipeline.verification import verdict
from pipeline.verification.graph_file import as_it_says

Step = Callable[[torch.Tensor], torch.Tensor]
STEPS: dict[str, Step] = {}


def step(name: str) -> Callable[[Step], Step]:
    """Registers a function of `[rows, 16]` numbers that gives as many."""

    def register(compute: Step) -> Step:
        STEPS[name] = compute
        return compute

    return register


@step("square")
def _square(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


@step("exponential")
def _exponential(x: torch.Tensor) -> torch.Tensor:
    return torch.log(1 + torch.exp(x.clamp(-20, 20)))


@step("sum")
def _sum(x: torch.Tensor) -> torch.Tensor:
    return x * 100 / ((x.abs() * 100).sum(-1, keepdim=True) + 1)


@step("product")
def _product(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + x.abs()).prod(-1, keepdim=True) ** (-1 / 16)


@step("softmax without its maximum")
def _softmax(x: torch.Tensor) -> torch.Tensor:
    raised = torch.exp((x / 20).clamp(-30, 30))
    return raised / raised.sum(-1, keepdim=True)


@step("epsilon that vanishes")
def _epsilon(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(min=0) / (x.clamp(min=0).sum(-1, keepdim=True) + 1e-9)


@step("mask constant")
def _mask(x: torch.Tensor) -> torch.Tensor:
    shown = (x > 0).to(x.dtype)
    return torch.softmax(x / 100 + (1 - shown) * -1e9, -1)


@step("cumulative sum")
def _cumulative_sum(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + torch.cumsum(x * x, -1)).sqrt()


@step("variance")
def _variance(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


@step("variance as a difference")
def _difference(x: torch.Tensor) -> torch.Tensor:
    far = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()
    return x * torch.rsqrt(far.clamp(min=0) + 1)


@step("cube")
def _cube(x: torch.Tensor) -> torch.Tensor:
    return x**3 / (1 + x.abs() ** 3)


@step("matrix product")
def _matrix(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh((x @ x.new_full((16, 16), 50.0)) / 1e5) + x / 1e3


@step("distance")
def _distance(x: torch.Tensor) -> torch.Tensor:
    distance = (x.unsqueeze(2) - x.unsqueeze(1)).square().sum(-1)
    return torch.exp(-distance / 1e6)


@step("squares that vanish")
def _vanishing(x: torch.Tensor) -> torch.Tensor:
    small = x * 1e-5
    return small * torch.rsqrt((small * small).mean(-1, keepdim=True) + 1e-14)


@step("logarithm of small numbers")
def _logarithm(x: torch.Tensor) -> torch.Tensor:
    return torch.log(torch.sigmoid(x / 100) * 1e-8 + 1e-9)


@step("inverse")
def _inverse(x: torch.Tensor) -> torch.Tensor:
    return x * 1e-7 / (x.abs().mean(-1, keepdim=True) * 1e-7 + 1e-8)


@step("temperature")
def _temperature(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax((x * 1000) / 2e4, -1)


class Faulty(nn.Module):
    """A step between two linear layers."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 16))
        self.head = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(STEPS[self.name](x) * self.scale)


def loud_rows() -> np.ndarray:
    """Returns inputs `[64, 16]`, of which every fourth row is 30 times as loud."""
    rows = np.random.default_rng(0).normal(0, 20, (64, 16))
    rows[::4] *= 30
    return rows.astype(np.float32)


def exported(network: nn.Module, precision: str, folder: Path, **inputs) -> tuple[Cast, Exported]:
    """Exports a network as the stage does."""
    model = Model(network=network.eval(), inputs=inputs or {"x": loud_rows()})
    golden_rows = rows.without_test_set(model, None)
    cast = at_precision(model, precision, golden_rows, traced=False)
    exact = ExactModel(model, ("output",))
    cache = ReferenceCache(folder / "cache", "key")
    reference = make_reference(
        model,
        cast.runs,
        exact,
        golden_rows,
        precision,
        None,
        cache,
        noise_runs=4,
        max_drop=0.01,
        beyond=cast.beyond,
    )
    source = Source(cast.module, cast.program, reference, {}, None)
    return cast, export(source, lambda: calibration.made(model))


def judge(graph: onnx.ModelProto, golden: Golden) -> verdict.Verdict:
    with as_it_says(graph) as path:
        session = engines.get("onnxruntime").open(path, OpenOptions("cpu", optimize=False))
        with closing(session):
            return verdict.judge("graph", session, golden)


def plain(network: nn.Module, golden: Golden, dtype: torch.dtype) -> onnx.ModelProto:
    """Exports a network as it is after `.half()`, without simplification."""
    served = Served(copy.deepcopy(network).to(dtype), None, dtype).eval()
    program = export_program(served, [torch.from_numpy(golden.inputs["x"][:2])], ["x"])
    *_, graph = export_graph(program, golden.input_specs, golden.output_specs, {}).graphs
    return graph

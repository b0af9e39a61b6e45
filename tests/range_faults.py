"""Modules that are right in float32 and leave the range of float16 on the way to their outputs.

Most give outputs that are plain numbers in float16, too, and wrong.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

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

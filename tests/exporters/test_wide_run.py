"""Programs of half types, run with their digits and the range of float32."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from exporters.module import Served
from exporters.program import export_program
from exporters.wide_run import WideRun, round_to

TYPES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", TYPES)
def test_numbers_are_rounded_as_by_a_cast_and_keep_their_range(dtype: torch.dtype) -> None:
    numbers = torch.from_numpy(np.random.default_rng(0).normal(0, 100, 10_000).astype(np.float32))
    numbers = torch.where(numbers.abs() < 1e-4, 1.0, numbers)  # float16 has fewer digits there
    rounded = round_to(numbers.clone(), dtype)
    assert torch.equal(rounded, numbers.to(dtype).float())
    ties = 1 + torch.arange(64) * torch.finfo(dtype).eps / 2
    assert torch.equal(round_to(ties.clone(), dtype), ties.to(dtype).float())
    for exponent in (-30, -20, 20, 30, 90):
        scaled = round_to(numbers * 2.0**exponent, dtype)
        assert torch.equal(scaled, rounded * 2.0**exponent)


@pytest.mark.parametrize("dtype", TYPES)
def test_infinities_and_the_largest_numbers_stay(dtype: torch.dtype) -> None:
    numbers = torch.tensor([torch.inf, -torch.inf, 0.0, 2.0**127])
    assert torch.equal(round_to(numbers.clone(), dtype), numbers)


def test_what_is_expanded_or_transposed_is_rounded_too() -> None:
    numbers = torch.rand(3, 1)
    for view in (numbers.expand(3, 4), torch.rand(3, 4).T):
        assert torch.equal(round_to(view, torch.float16), view.half().float())


@pytest.mark.parametrize("dtype", TYPES)
def test_layers_err_as_pytorchs_own_do(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True)).eval()
    x = torch.randn(4, 3, 9, 9)
    half = Served(copy.deepcopy(network).to(dtype), None, dtype).eval()
    wide = WideRun(export_program(half, [x[:2]]), dtype)
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(x.double())
        errors = [(run(x)[0].double() - exact).square().mean().sqrt() for run in (half, wide)]
    assert errors[1] == pytest.approx(errors[0].item(), rel=0.1)


def test_what_a_model_computes_in_float32_is_not_rounded() -> None:
    class Explicit(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.float() + 1e-5).to(x.dtype), x.float() + 1e-5

    half = Served(Explicit(), None, torch.float16).eval()
    x = torch.ones(2, 3)
    wide = WideRun(export_program(half, [x]), torch.float16)
    rounded, exact = wide(x)
    assert (rounded == 1).all()
    assert (exact == torch.tensor(1.0) + 1e-5).all()


def test_a_copy_has_its_own_tensors() -> None:
    half = Served(nn.Linear(3, 2).half(), None, torch.float16).eval()
    wide = WideRun(export_program(half, [torch.ones(2, 3)]), torch.float16)
    copied = copy.deepcopy(wide)
    with torch.no_grad():
        for tensor in copied.buffers():
            tensor.zero_()
    assert (copied(torch.ones(2, 3))[0] == 0).all()
    assert (wide(torch.ones(2, 3))[0] != 0).any()

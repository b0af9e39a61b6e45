"""The noise floor of a row: at least one rounding unit, raised if it seems quiet by chance."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exporters import PRECISIONS
from pipeline.golden import noise
from pipeline.verification import limits, noise_floor
from tests.conftest import Result

Assay = Callable[..., Result]


def test_the_floor_is_never_below_one_unit_of_rounding_at_the_rows_scale() -> None:
    reference = np.array([[1.0, -3.0], [100.0, -300.0], [0.0, 0.0]])
    floors = noise_floor.floor(reference, np.zeros((3, 2)), "fp32")
    assert floors.rms[:2] == pytest.approx(2**-23 * np.sqrt(5) * np.array([1, 100]))
    assert floors.max[:2] == pytest.approx(2**-23 * 3 * np.array([1, 100]))
    assert floors.rms[2] > 0
    assert floors.max[2] > 0


def test_a_row_that_overflows_in_one_run_is_not_compared() -> None:
    reference = np.ones((3, 4))
    other = reference.copy()
    other[1, 2], other[2, 0] = np.inf, np.nan
    floors = noise.measure(reference, [reference + 1e-7, other])
    floor = noise_floor.floor(reference, floors, "fp32")
    assert floor.comparable.tolist() == [True, False, False]
    assert np.isfinite(floors).all()


def test_the_noise_of_a_quiet_row_is_raised() -> None:
    reference = np.ones((5, 4))
    measured = np.tile([4e-6, 8e-6], (5, 1))
    measured[0] = [2e-6, 4e-6]  # half the usual noise
    measured[1] = [2e-7, 4e-7]  # too little to be chance
    measured[2] = [4e-5, 8e-5]  # more than the usual noise stays as it is
    floor = noise_floor.floor(reference, measured, "fp32")
    assert floor.rms == pytest.approx([np.sqrt(10) * 1e-6, 4e-7, 4e-5, 4e-6, 4e-6])
    assert floor.max == pytest.approx(2 * floor.rms)
    # The usual noise is at the scale of the row.
    assert noise_floor.floor(100 * reference, 100 * measured, "fp32").rms == pytest.approx(
        100 * floor.rms
    )
    # Rows that cannot be compared do not count for the usual noise.
    measured[2:4] = 1.0
    assert noise_floor.floor(reference, measured, "fp32").rms[4] == pytest.approx(4e-6)


def test_rows_far_below_the_usual_scale_have_an_absolute_floor() -> None:
    scales = np.array([1.0, 1.0, 1.0, 1.0, 1e-2, 1e-9, 1e6])
    reference = scales[:, None] * np.ones((7, 1))
    floor = noise_floor.floor(reference, np.zeros((7, 2)), "fp16")
    unit = PRECISIONS["fp16"].unit
    expected = unit * np.array([1.0, 1.0, 1.0, 1.0, 1e-2, limits.LEAST_NOISE, 1e6])
    assert floor.rms == pytest.approx(expected)
    assert floor.max == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_saturated_probability_is_no_fault(precision: str, tmp_path: Path, assay: Assay) -> None:
    source = tmp_path / "saturated.py"
    source.write_text(SATURATED)
    words = (f"{source}:make", "--precision", precision, "--root", tmp_path / "artifacts")
    assert assay("export", *words).code == 0
    verified = assay("verify", *words)
    assert verified.code == 0, verified.err


SATURATED = """
import numpy as np
import torch
from torch import nn
from pipeline.models import Model


class Probability(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, x):
        return torch.sigmoid(self.linear(x) * 30)


def make():
    torch.manual_seed(0)
    rows = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    return Model(network=Probability(), inputs={"x": rows})
"""

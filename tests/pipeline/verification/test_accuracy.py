"""The drop in accuracy, its exact interval, and signal to noise."""

import math

import numpy as np
import pytest

from pipeline.verification import accuracy


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Clopper and Pearson's interval, as tables and every statistics package give it.
        (0, 10, 0.0, 0.3085),
        (10, 10, 0.6915, 1.0),
        (5, 10, 0.1871, 0.8129),
        (3, 20, 0.0321, 0.3789),
        (50, 100, 0.3983, 0.6017),
    ],
)
def test_the_interval_is_clopper_and_pearsons(
    hits: int, trials: int, low: float, high: float
) -> None:
    interval = accuracy._clopper_pearson(hits, trials)
    assert interval == pytest.approx((low, high), abs=1e-4)


def test_the_interval_covers_the_truth_at_its_confidence() -> None:
    random = np.random.default_rng(0)
    images, lost_rate, gained_rate = 2000, 0.02, 0.012
    truth = lost_rate - gained_rate
    held = 0
    for _ in range(200):
        draw = random.random(images)
        lost = int((draw < lost_rate).sum())
        gained = int((draw > 1 - gained_rate).sum())
        interval = accuracy.drop(images, lost, gained)
        assert interval.low <= interval.value <= interval.high
        held += interval.low <= truth <= interval.high
    assert held >= 185  # of 200; an exact interval holds at least 95 %


def test_no_discordant_image_is_no_drop() -> None:
    assert accuracy.drop(1000, 0, 0) == accuracy.Drop(0.0, 0.0, 0.0)


def test_a_large_test_set_does_not_overflow() -> None:
    interval = accuracy.drop(1_000_000, 30_000, 20_000)
    assert interval.value == pytest.approx(0.01)
    assert 0 < interval.high - interval.low < 0.001


def test_signal_to_noise_is_in_decibels() -> None:
    assert accuracy.sqnr(10.0, 1.0) == pytest.approx(20)
    assert accuracy.sqnr(1.0, 0.0) == accuracy.sqnr(1.0, 1e-300) == 200
    assert accuracy.sqnr(0.0, 1.0) == -200
    assert math.isfinite(accuracy.sqnr(0.0, 0.0))

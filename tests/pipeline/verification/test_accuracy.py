"""The drop in accuracy, its interval, and signal to noise."""

import math
import statistics

import numpy as np
import pytest

from pipeline.verification import accuracy


def normal(p: float) -> float:
    return statistics.NormalDist().inv_cdf(p)


@pytest.mark.parametrize("images", [2, 50, 1000, 10_000])
def test_without_a_lost_image_the_interval_is_as_wide_as_images_are_few(images: int) -> None:
    # In this case, the score interval has a closed form.
    square = normal(0.975) ** 2
    bound = square / (images + square)
    interval = accuracy.drop(images, 0, 0)
    assert interval.value == 0
    assert (interval.low, interval.high) == pytest.approx((-bound, bound), rel=1e-5)


def test_the_interval_is_mcnemars_where_images_are_many() -> None:
    # The score test of no difference is McNemar's: (lost - gained)^2 / (lost + gained).
    for lost, gained in ((60, 40), (61, 39), (1000, 915)):
        significant = (lost - gained) ** 2 / (lost + gained) > normal(0.975) ** 2
        interval = accuracy.drop(100_000, lost, gained)
        assert (interval.low > 0) == significant


def test_the_interval_covers_the_truth_at_its_confidence() -> None:
    random = np.random.default_rng(0)
    images, lost_rate, gained_rate = 300, 0.02, 0.012
    truth = lost_rate - gained_rate
    held = 0
    for _ in range(200):
        draw = random.random(images)
        lost = int((draw < lost_rate).sum())
        gained = int((draw > 1 - gained_rate).sum())
        interval = accuracy.drop(images, lost, gained)
        assert interval.low <= interval.value <= interval.high
        held += interval.low <= truth <= interval.high
    assert held >= 185  # of 200; 190 are expected


def test_a_large_test_set_does_not_overflow() -> None:
    interval = accuracy.drop(1_000_000, 30_000, 20_000)
    assert interval.value == pytest.approx(0.01)
    assert 0 < interval.high - interval.low < 0.001


def test_signal_to_noise_is_in_decibels() -> None:
    assert accuracy.sqnr(10.0, 1.0) == pytest.approx(20)
    assert accuracy.sqnr(1.0, 0.0) == accuracy.sqnr(1.0, 1e-300) == 200
    assert accuracy.sqnr(0.0, 1.0) == -200
    assert math.isfinite(accuracy.sqnr(0.0, 0.0))


@pytest.mark.parametrize(
    ("images", "lost", "gained", "verdict"),
    [
        (10_000, 30, 20, "kept"),
        (10_000, 300, 100, "lost"),
        (60, 1, 0, "doubted"),  # 1.7 points, but one image may be chance
        (60, 0, 0, "doubted"),
        (256, 20, 2, "lost"),
    ],
)
def test_a_drop_is_a_fault_only_if_it_is_not_chance(
    images: int, lost: int, gained: int, verdict: str
) -> None:
    drop = accuracy.drop(images, lost, gained)
    assert bool(accuracy.faults(drop, 0.01)) == (verdict == "lost")
    assert bool(accuracy.doubts(images, drop, 0.01)) == (verdict != "kept")

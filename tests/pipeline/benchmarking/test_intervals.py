"""Confidence intervals, on samples whose median is known."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pipeline.benchmarking import intervals


def correlated(generator: np.random.Generator, count: int) -> np.ndarray:
    """Returns samples of median 1 that follow each other, some of them far too large."""
    level = np.zeros(count)
    for index in range(1, count):
        level[index] = 0.8 * level[index - 1] + 0.02 * generator.normal()
    late = generator.exponential(size=count) * (generator.random(count) < 0.1)
    early = generator.exponential(size=count) * (generator.random(count) < 0.1)
    return np.exp(level + late - early)


@pytest.mark.parametrize("count", [20, 400])
def test_the_interval_covers_the_median_of_independent_samples(count: int) -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        interval = intervals.location(generator.lognormal(size=count))
        assert interval.low <= interval.value <= interval.high
        inside += interval.low <= 1 <= interval.high
    assert 370 <= inside <= 398  # 380 expected


def test_it_covers_the_median_of_correlated_samples_with_outliers() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(300):
        interval = intervals.location(correlated(generator, 400))
        inside += interval.low <= 1 <= interval.high
    assert inside >= 276  # 92 %


def test_the_interval_of_groups_holds_the_value_of_one_that_is_not_among_them() -> None:
    generator = np.random.default_rng(0)
    inside = among = 0
    for _ in range(400):
        groups = np.repeat(np.arange(8), 12)
        accidents = 0.01 * generator.normal(size=8)
        samples = np.exp(accidents[groups] + 0.001 * generator.normal(size=len(groups)))
        interval = intervals.of_groups(samples, groups)
        assert interval is not None
        inside += interval.low <= 1 <= interval.high
        # In time all samples are alike, so that they seem to know more.
        mixed = intervals.location(generator.permutation(samples))
        among += mixed.low <= 1 <= mixed.high
    assert 370 <= inside <= 396  # 384 expected
    assert among < 300
    assert intervals.of_groups(np.ones(10), np.arange(10) % 5) is None


@pytest.mark.parametrize("count", [6, 7, 8, 10])
def test_the_cut_is_that_of_all_signs(count: int) -> None:
    ranks = np.arange(1, count + 1)
    signs = np.array([*itertools.product([0, 1], repeat=count)])
    sums = np.sort(signs @ ranks)
    cut = intervals._cut(count)
    assert np.mean(sums <= cut) <= 0.025 < np.mean(sums <= cut + 1)


def test_few_samples_give_their_range() -> None:
    interval = intervals.location(np.array([1.0, 4.0, 2.0]))
    assert (interval.low, interval.high) == pytest.approx((1, 4))
    assert interval.reach == pytest.approx(1)  # from 2 to 4


def test_a_percentile_is_known_only_with_samples_to_both_sides_of_its_interval() -> None:
    assert intervals.percentile(np.arange(1.0, 101), 99) is None
    known = intervals.percentile(np.arange(1.0, 1001), 99)
    assert known is not None
    assert known.low < 990 < known.high < 1000
    generator, inside = np.random.default_rng(0), 0
    for _ in range(300):
        interval = intervals.percentile(np.sort(generator.random(2000)), 95)
        assert interval is not None
        inside += interval.low <= 0.95 <= interval.high
    assert 275 <= inside <= 297  # 285 expected


def regular(generator: np.random.Generator, count: int) -> tuple[np.ndarray, float]:
    return generator.normal(1, 0.01, count), 1.0


def irregular(generator: np.random.Generator, count: int) -> tuple[np.ndarray, float]:
    return generator.exponential(1, count), 1.0


def stalling(generator: np.random.Generator, count: int) -> tuple[np.ndarray, float]:
    return np.where(generator.random(count) < 0.02, 20.0, 1.0), 1 / 1.38


@pytest.mark.parametrize(
    ("draw", "seconds"), [(regular, 15), (irregular, 15), (irregular, 1000), (stalling, 1000)]
)
def test_the_interval_of_a_rate_covers_that_of_a_long_run(draw: Any, seconds: float) -> None:
    generator, inside = np.random.default_rng(0), 0
    for _ in range(300):
        gaps, true_rate = draw(generator, 3 * round(seconds) + 100)
        moments = np.cumsum(gaps) - generator.uniform(20, 40)
        moments = moments[(moments > 0) & (moments <= seconds)]
        known = intervals.rate(moments, seconds)
        assert known is not None
        assert known.value == len(moments) / seconds
        inside += known.low <= true_rate <= known.high
    assert inside >= 276  # 92 %


def test_a_rate_takes_two_events() -> None:
    assert intervals.rate(np.array([0.5]), 1) is None
    known = intervals.rate(np.array([0.3, 0.6]), 1, fewest=8)
    assert known is not None
    assert known.low < known.value == 2 < known.high < math.inf


LOAD = 0.7


def waited_at_most(time: float) -> float:
    """Returns the part of a queue's customers that wait at most so many service times.

    For random arrivals, one server and a constant service time: Crommelin's formula of 1932.
    """
    terms = (
        math.exp(-LOAD * (k - time)) * (LOAD * (k - time)) ** k / math.factorial(k)
        for k in range(math.floor(time) + 1)
    )
    return (1 - LOAD) * sum(terms)


def latencies(
    generator: np.random.Generator, load: float, services: np.ndarray
) -> np.ndarray[Any, Any]:
    """Returns waits and services of a queue with one server, without the first tenth."""
    steps = np.array([0, *services[:-1] - generator.exponential(1 / load, len(services) - 1)])
    total = np.cumsum(steps)
    waits = total - np.minimum.accumulate(total)
    return (waits + services)[len(services) // 10 :]


@pytest.mark.parametrize("percent", [50, 90])
def test_percentiles_of_waits_in_a_queue_are_those_of_the_formula(percent: int) -> None:
    generator, name = np.random.default_rng(0), f"p{percent}"
    inside, as_if_independent = 0, 0
    for _ in range(200):
        waits = latencies(generator, LOAD, np.ones(3000)) - 1
        known = intervals.percentiles([*waits], intervals.queue_dependence(LOAD, 0))[name]
        naive = intervals.percentiles([*waits])[name]
        part = percent / 100
        inside += waited_at_most(known.low) <= part <= waited_at_most(known.high)
        as_if_independent += waited_at_most(naive.low) <= part <= waited_at_most(naive.high)
    assert inside >= 184  # 92 %
    assert as_if_independent < 140


@pytest.mark.parametrize(
    ("load", "count", "often"),
    [(0.5, 5_000, "p95"), (0.8, 5_000, "p90"), (0.9, 1_000, ""), (0.9, 5_000, "p50")],
)
def test_a_percentile_near_saturation_is_covered_or_not_known(
    load: float, count: int, often: str
) -> None:
    generator, runs = np.random.default_rng(0), 100
    inside, known = Counter[str](), Counter[str]()
    for _ in range(runs):
        services = generator.exponential(1, round(count / 0.9))
        times = latencies(generator, load, services)
        dependence = intervals.queue_dependence(load, 1)
        for name, interval in intervals.percentiles([*times], dependence).items():
            # The latency in such a queue is exponential.
            true_value = -math.log(1 - float(name[1:]) / 100) / (1 - load)
            known[name] += 1
            inside[name] += interval.low <= true_value <= interval.high
    if often:
        assert known[often] > 0.8 * runs
    for name, times_known in known.items():
        assert inside[name] > 0.92 * times_known - 2, name


def test_queue_dependence_rises_with_load_and_variation() -> None:
    assert intervals.queue_dependence(0, 0) == 1
    dependences = [intervals.queue_dependence(load, 1) for load in (0.5, 0.8, 0.9)]
    assert dependences == pytest.approx([9, 81, 361])
    assert intervals.queue_dependence(0.9, 0) == pytest.approx(181)

"""Upper prediction limits keep their promises."""

import math

import numpy as np
import pytest

from pipeline.rebuilding.prediction import student, upper

TRIALS = 4000


@pytest.mark.parametrize(
    ("probability", "degrees", "expected"),
    # From the table in Abramowitz and Stegun, 26.10.
    [(0.975, 1, 12.706), (0.975, 2, 4.303), (0.95, 3, 2.353), (0.995, 4, 4.604), (0.99, 9, 2.821)],
)
def test_students_quantiles_are_those_of_the_tables(
    probability: float, degrees: int, expected: float
) -> None:
    assert student(probability, degrees) == pytest.approx(expected, abs=6e-4)


def outside(draws: np.ndarray, false_alarms: float, least: float = 0.0) -> float:
    """Returns how often the last value of a row exceeds the limit from the others."""
    return float(
        np.mean([row[-1] > upper(row[:-1].tolist(), false_alarms, least) for row in draws])
    )


# Three standard errors above the promise.
def at_most(promise: float) -> float:
    return promise + 3 * math.sqrt(promise * (1 - promise) / TRIALS)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
@pytest.mark.parametrize("false_alarms", [0.05, 0.01])
def test_a_further_normal_value_is_outside_as_seldom_as_promised(
    count: int, false_alarms: float
) -> None:
    draws = np.random.default_rng(count).normal(3.0, 0.7, (TRIALS, count + 1))
    share = outside(draws, false_alarms)
    assert share <= at_most(false_alarms)
    if count > 3:  # with few values, the largest of them may be the limit
        assert share >= false_alarms / 2  # nor is the limit out of reach


@pytest.mark.parametrize("count", [2, 5, 10])
@pytest.mark.parametrize("name", ["pareto", "two kernels", "exponential"])
def test_a_further_value_of_any_distribution_exceeds_the_largest_seldom(
    name: str, count: int
) -> None:
    random = np.random.default_rng(count)
    size = (TRIALS, count + 1)
    draws = {
        "pareto": lambda: random.pareto(0.5, size),
        "two kernels": lambda: (random.random(size) < 0.05) * 1.0,
        "exponential": lambda: random.exponential(1.0, size),
    }[name]()
    assert outside(draws, 0.05) <= at_most(1 / (count + 1))


def test_equal_values_get_the_least_spread() -> None:
    limit = upper([2.0, 2.0, 2.0], 0.05, 0.1)
    assert limit == pytest.approx(2 + student(0.95, 2) * 0.1 * math.sqrt(4 / 3))


def test_the_limit_is_never_below_the_largest_value() -> None:
    values = [0.0] * 19 + [10.0]
    # Of normal values, the limit would be 1.7.
    assert upper(values, 0.3, 0.0) == 10.0

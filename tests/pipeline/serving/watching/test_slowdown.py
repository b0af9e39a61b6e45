"""The sequential test of latencies: what it promises, on simulated servers."""

import math

import numpy as np
import pytest

from pipeline.serving.watching.monitor import QUICK
from pipeline.serving.watching.slowdown import Slowdown, windows_in_a_row


@pytest.mark.parametrize(
    ("baseline", "rate", "needed"), [(30, 1e-4, 4), (30, 1e-3, 3), (10, 0.1, 1), (5, 1e-6, 39)]
)
def test_so_many_windows_in_a_row_keep_the_rate(baseline: int, rate: float, needed: int) -> None:
    assert windows_in_a_row(baseline, rate) == needed
    assert 1 / math.comb(baseline + needed, needed) <= rate
    assert needed == 1 or 1 / math.comb(baseline + needed - 1, needed - 1) > rate


@pytest.mark.parametrize("times", ["normal", "heavy tails"])
def test_equal_windows_alarm_as_seldom_as_promised(times: str) -> None:
    random = np.random.default_rng(0)
    runs, alarms = 20_000, 0
    for _ in range(runs):
        test = Slowdown(baseline=6, needed=2, tolerance=0.0)
        values = random.normal(10, 1, 8) if times == "normal" else random.pareto(1.5, 8) + 1
        for value in values:
            test.add(value)
        alarms += test.slow
    promised = 1 / math.comb(8, 2)
    assert test.rate == promised
    spread = math.sqrt(promised * (1 - promised) / runs)
    assert abs(alarms / runs - promised) < 4 * spread


def windows(random: np.random.Generator, count: int, service: float, days: float) -> np.ndarray:
    """Returns the typical times of windows of 20 golden requests to a simulated server.

    Others send requests at random, by day up to 70 % of what the server can do; a request waits
    for those before it. Its service takes 1 ms to within 2 %, and one in 200 ten times as long.
    """
    size = 20
    moments = np.linspace(0, days, count * size)
    load = 0.4 + 0.3 * np.sin(2 * np.pi * moments)
    times = service * (1 + 0.02 * random.standard_normal(len(moments)))
    times[random.random(len(moments)) < 0.005] *= 10
    # A random moment finds an idle server, or else waits as in a queue with random arrivals.
    waits = random.exponential(service / (1 - load)) * (random.random(len(moments)) < load)
    return np.quantile((times + waits).reshape(count, size), QUICK, axis=1)


def test_a_week_of_healthy_traffic_gives_no_more_false_alarms_than_promised() -> None:
    alarms, judged = 0, 0
    for seed in range(5):
        random = np.random.default_rng(seed)
        test = Slowdown(30, windows_in_a_row(30, 1e-4), 0.1)
        # One golden row in six seconds: 5,040 windows of two minutes are a week.
        for value in windows(random, 5040, 1e-3, 7):
            before = test.slow
            test.add(value)
            alarms += test.slow and not before
            judged += test.ready
    assert judged > 20_000
    assert alarms <= max(2, 2 * test.rate * judged)


def test_ten_thousand_windows_alarm_as_seldom_as_promised() -> None:
    test = Slowdown(30, windows_in_a_row(30, 1e-4), 0.0)
    # Without a tolerance, against a new baseline each time: windows of one distribution.
    random, alarms, judged = np.random.default_rng(1), 0, 0
    while judged < 10_000:
        test = Slowdown(30, test.needed, 0.0)
        for value in windows(random, 60, 1e-3, 0):
            before = test.slow
            test.add(value)
            alarms += test.slow and not before
            judged += test.ready
    assert alarms <= 3  # at most one is to be expected, and three in 98 of 100 times


def test_a_server_that_slows_by_a_fifth_is_found_in_time() -> None:
    for seed in range(50):
        random = np.random.default_rng(seed)
        test = Slowdown(30, windows_in_a_row(30, 1e-4), 0.1)
        for value in windows(random, 40, 1e-3, 0.05):
            test.add(value)
        assert not test.slow
        for value in windows(random, test.needed, 1.2e-3, 0.05):
            test.add(value)
        assert test.slow, seed


def test_a_slow_window_alone_is_no_alarm() -> None:
    test = Slowdown(5, 3, 0.1)
    for value in (1.0, 1.1, 1.0, 1.05, 1.0):
        test.add(value)
    assert (test.ready, test.longest) == (True, 1.1)
    for values, slow in (((2, 2), False), ((1.2,), False), ((2, 2, 2), True), ((1.2,), False)):
        for value in values:
            test.add(value)
        assert test.slow is slow

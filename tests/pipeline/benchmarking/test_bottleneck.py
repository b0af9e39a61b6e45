"""What bounds the time of an inference on a GPU."""

import time

import pytest

from pipeline.benchmarking.bottleneck import bottleneck, enqueue_seconds
from tests.timed import timed


@pytest.mark.parametrize(
    ("enqueue", "device", "end_to_end", "expected"),
    [
        (283e-6, 283e-6, 350e-6, "launches"),
        (20e-6, 1451e-6, 9000e-6, "transfers"),
        (20e-6, 1451e-6, 1800e-6, "computation"),
    ],
)
def test_the_slowest_part_bounds_the_time(
    enqueue: float, device: float, end_to_end: float, expected: str
) -> None:
    assert bottleneck(enqueue, device, end_to_end) == expected


class Device:
    """Launches take 2 ms of the CPU; work on the device takes 20 ms, and one launch may wait."""

    stream: int | None = 1

    def __init__(self) -> None:
        self.busy_until = 0.0

    def launch(self) -> None:
        time.sleep(max(0.0, self.busy_until - time.perf_counter()))
        time.sleep(0.002)
        self.busy_until = time.perf_counter() + 0.02

    def synchronize(self) -> None:
        time.sleep(max(0.0, self.busy_until - time.perf_counter()))


@timed
def test_enqueueing_is_timed_without_waiting_for_the_device() -> None:
    seconds = enqueue_seconds(Device())
    assert seconds is not None
    assert 0.002 <= seconds < 0.02


def test_a_launch_on_a_cpu_computes_and_is_not_timed() -> None:
    device = Device()
    device.stream = None
    assert enqueue_seconds(device) is None

"""What a window of replies shows."""

import numpy as np
import pytest

from engines.contract import Outputs
from pipeline.golden import file as goldens
from pipeline.serving.watching.monitor import FAILURES, Alarm, Monitor
from pipeline.serving.watching.slowdown import Slowdown
from pipeline.workflow.runner import Store

SIZE = 10


@pytest.fixture
def golden(built: Store) -> goldens.Golden:
    return goldens.load(built.root / "lenet/fp32/golden.npz")


@pytest.fixture
def monitor(golden: goldens.Golden) -> Monitor:
    return Monitor(golden, SIZE, Slowdown(baseline=5, needed=2, tolerance=0.1))


def send(monitor: Monitor, change: object = None, seconds: float = 1e-3) -> list[Alarm]:
    """Sends one window of PyTorch's own outputs, changed."""
    alarms = []
    for row in range(SIZE):
        outputs: Outputs = {
            name: array[row : row + 1] for name, array in monitor.golden.native.items()
        }
        if change is not None:
            outputs = {name: change(array) for name, array in outputs.items()}
        alarms += monitor.reply(row, outputs, seconds)
    return alarms


def test_replies_as_proved_are_no_alarm(monitor: Monitor) -> None:
    assert [send(monitor) for _ in range(10)] == [[]] * 10
    assert monitor.last.faults == ()
    assert 0 < monitor.last.floors < 6
    assert (monitor.last.quick, len(monitor.last.times)) == (1e-3, SIZE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda array: array * np.float32(1.01), "times the noise floor"),
        (lambda array: array + np.float32("nan"), "NaN or Inf"),
        (lambda array: array.astype(np.float16), "float16[1, 10] where float32[1, 10]"),
        (lambda array: array[:, :9], "float32[1, 9] where"),
        (lambda array: array[:0], "float32[0, 10] where"),
        (lambda array: array * 0 + 1, "does not depend on the input"),
    ],
)
def test_other_outputs_are_one_alarm_until_they_are_right_again(
    monitor: Monitor, change: object, words: str
) -> None:
    assert send(monitor) == []
    (alarm,) = send(monitor, change)
    assert (alarm.kind, alarm.begins) == ("mismatch", True)
    assert words in alarm.reason
    assert send(monitor, change) == []
    assert "mismatch" in monitor.active
    (end,) = send(monitor)
    assert (end.kind, end.begins) == ("mismatch", False)
    assert not monitor.active


def test_one_wrong_reply_in_a_window_is_found(monitor: Monitor) -> None:
    turns = iter(range(SIZE))
    alarms = send(monitor, lambda array: array[:, ::-1] if next(turns) == 3 else array)
    assert [alarm.kind for alarm in alarms] == ["mismatch"]


def test_a_server_that_slows_is_one_alarm_until_it_is_quick_again(monitor: Monitor) -> None:
    for _ in range(5):
        assert send(monitor, seconds=1e-3) == []
    assert send(monitor, seconds=1.2e-3) == []
    (alarm,) = send(monitor, seconds=1.2e-3)
    assert (alarm.kind, alarm.begins) == ("slower", True)
    assert "1.20 times as long" in alarm.reason
    assert send(monitor, seconds=1.2e-3) == []
    (end,) = send(monitor, seconds=1e-3)
    assert (end.kind, end.begins) == ("slower", False)


def test_wrong_windows_are_no_part_of_the_baseline(monitor: Monitor) -> None:
    for _ in range(9):
        send(monitor, lambda array: -array, seconds=1.0)
    assert not monitor.slowdown.ready
    assert monitor.slowdown.longest == 0


def test_failures_in_a_row_are_one_alarm_until_it_answers(monitor: Monitor) -> None:
    for _ in range(FAILURES - 1):
        assert monitor.failure("refused") == []
    (alarm,) = monitor.failure("refused")
    assert (alarm.kind, alarm.begins) == ("down", True)
    assert monitor.failure("no such model") == []
    assert monitor.active["down"] == "4 requests in a row failed: no such model"
    outputs = {name: array[:1] for name, array in monitor.golden.native.items()}
    (end,) = monitor.reply(0, outputs, 1e-3)
    assert (end.kind, end.begins) == ("down", False)
    assert monitor.failure("refused") == []  # the count begins anew

"""Several sessions of one engine."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from engines import hardware
from engines.errors import FailedError
from pipeline.benchmarking import clock, intervals, several


@dataclass
class Opened:
    """A session that says whether it is closed."""

    device: str = "cpu"
    closed: list[bool] = field(default_factory=list)

    def close(self) -> None:
        self.closed.append(True)


def test_as_many_are_opened_as_the_clock_uses_and_all_are_closed() -> None:
    first = Opened()
    with ExitStack() as stack:
        others = several.more(first, Opened, stack)
        assert len(others) == clock.SESSIONS - 1
        assert not any(session.closed for session in (first, *others))
    assert all(session.closed == [True] for session in (first, *others))


def test_a_gpu_gets_one() -> None:
    with ExitStack() as stack:
        assert several.more(Opened("cuda:0"), Opened, stack) == []


def test_sessions_that_take_long_to_open_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(several, "_SECONDS", 0.1)
    opened: list[Opened] = []

    def opens() -> Opened:
        time.sleep(0.05)
        opened.append(Opened())
        return opened[-1]

    with ExitStack() as stack:
        assert several.more(Opened(), opens, stack) == []
        assert len(opened) == 1  # seven would take 0.35 s
        assert opened[0].closed


def test_sessions_that_take_much_memory_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda: 1 << 20)
    opened: list[bytearray] = []

    def opens() -> Opened:
        opened.append(bytearray(b"x" * (32 << 20)))
        return Opened()

    with ExitStack() as stack:
        assert several.more(Opened(), opens, stack) == []
    assert len(opened) == 1


@pytest.mark.parametrize("working", [0, 3, 5, 6])
def test_what_cannot_be_opened_again_is_timed_alone(working: int) -> None:
    opened: list[Opened] = []

    def opens() -> Opened:
        if len(opened) == working:
            raise FailedError("out of memory", "")
        opened.append(Opened())
        return opened[-1]

    with ExitStack() as stack:
        others = several.more(Opened(), opens, stack)
        assert len(others) == (working if working + 1 >= intervals.FEWEST else 0)
    assert all(session.closed == [True] for session in opened)

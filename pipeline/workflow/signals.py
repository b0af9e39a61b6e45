"""Ctrl-C ends a command with exit code 130, SIGTERM with 143, without a half-written file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import engines

_state = {"deferred": 0, "pending": 0}


class Interrupted(KeyboardInterrupt):
    """The process received SIGINT or SIGTERM.

    Attributes:
        exit_code: The process exit code this leads to, as shells number it.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.exit_code = 128 + number


def install() -> None:
    """Makes SIGINT and SIGTERM raise Interrupted in the main thread, but not during an import."""
    engines.import_guard = deferred
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def uninstall() -> None:
    """Makes SIGINT and SIGTERM end the process at once, when nothing is left to be cleaned up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _handle(number: int, _frame: FrameType | None) -> None:
    if _state["deferred"]:
        _state["pending"] = number
    else:
        raise Interrupted(number)


@contextmanager
def deferred() -> Iterator[None]:
    """Delays signals until the block ends, so that it is not left half done."""
    _state["deferred"] += 1
    try:
        yield
    finally:
        _state["deferred"] -= 1
        if _state["pending"] and not _state["deferred"]:
            number, _state["pending"] = _state["pending"], 0
            raise Interrupted(number)

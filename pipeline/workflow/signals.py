"""Ctrl-C and SIGTERM end a command in the same orderly way: exit 130, nothing half-written."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_state = {"deferred": 0, "pending": False}


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived."""


def install() -> None:
    """Makes SIGINT and SIGTERM raise Interrupted in the main thread."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def _handle(_number: int, _frame: FrameType | None) -> None:
    if _state["deferred"]:
        _state["pending"] = True
    else:
        raise Interrupted


@contextmanager
def deferred() -> Iterator[None]:
    """Holds signals back until the block ends, for the few renames that belong together."""
    _state["deferred"] += 1
    try:
        yield
    finally:
        _state["deferred"] -= 1
        if _state["pending"] and not _state["deferred"]:
            _state["pending"] = False
            raise Interrupted

"""Ctrl-C and SIGTERM both end a command with exit code 130 and no half-written file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import engines

_state = {"deferred": 0, "pending": False, "received": False}


class Interrupted(KeyboardInterrupt):
    """The process received SIGINT or SIGTERM."""


def install() -> None:
    """Makes SIGINT and SIGTERM raise Interrupted in the main thread, but not during an import."""
    engines.import_guard = deferred
    _state["received"] = False
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def received() -> bool:
    """Whether SIGINT or SIGTERM arrived: errors from then on may be a library's answer to it."""
    return bool(_state["received"])


def _handle(_number: int, _frame: FrameType | None) -> None:
    _state["received"] = True
    if _state["deferred"]:
        _state["pending"] = True
    else:
        raise Interrupted


@contextmanager
def deferred() -> Iterator[None]:
    """Delays signals until the block ends, so that it is not left half done."""
    _state["deferred"] += 1
    try:
        yield
    finally:
        _state["deferred"] -= 1
        if _state["pending"] and not _state["deferred"]:
            _state["pending"] = False
            raise Interrupted

"""Ctrl-C ends a command with exit code 130, SIGTERM with 143, without a half-written file."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import engines

# The number of blocks that defer signals, and the signals that are deferred and received, or 0.
_state = {"deferred": 0, "pending": 0, "received": 0}


# The name of threads that use sessions of engines, whose native code may never return.
SESSION_THREAD = "session"


class Interrupted(KeyboardInterrupt):
    """The process received SIGINT or SIGTERM.

    Attributes:
        exit_code: The process exit code this leads to, as shells number it.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.exit_code = 128 + number


def install() -> None:
    """Makes signals raise Interrupted in the main thread, but not during an import.

    They are SIGINT, SIGTERM and SIGHUP.
    """
    engines.import_guard = deferred
    _state.update(pending=0, received=0)
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # `nohup` ignores it
        signal.signal(signal.SIGHUP, _handle)


def uninstall() -> None:
    """Makes these signals end the process at once, when nothing is left to be cleaned up."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) == _handle:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def end_if_stuck(code: int) -> None:
    """Ends the process, without the interpreter's own end, if a thread is still in a session.

    Native code aborts the process when Python ends below it, with another exit code.
    """
    if any(thread.name == SESSION_THREAD for thread in threading.enumerate()):
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _handle(number: int, _frame: FrameType | None) -> None:
    _state["received"] = number
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


def handled() -> None:
    """Says that what a signal interrupted has ended as it should: what follows means something."""
    _state["received"] = 0


@contextmanager
def not_swallowed() -> Iterator[None]:
    """Raises Interrupted if a signal arrived, even if a library swallowed the exception.

    Some do, such as those that try an import. Their results, and their errors, mean nothing then.
    """
    try:
        yield
    except Exception as error:
        if _state["received"]:
            raise Interrupted(_state["received"]) from error
        raise
    if _state["received"]:
        raise Interrupted(_state["received"])

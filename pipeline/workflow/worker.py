"""Calls functions in a child process, which native code of an engine may crash without harm.

One child serves all calls of a process, one after the other, so that libraries are imported once. A
new one is started after a death, and when the environment has changed.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from engines import hardware, temporary
from engines.errors import CrashedError
from pipeline.workflow import console
from pipeline.workflow.worker_child import ALONE, ChildError, Message

P = ParamSpec("P")
T = TypeVar("T")

_POLL_SECONDS = 0.25
# A child that uses more than half of the memory is stopped when no more than this is left, before
# the kernel chooses a process to kill.
_RESERVE_BYTES = 256 << 20
# How much of what libraries print is kept, and how many lines of that are printed after a death.
_PART_BYTES, _PRINTED_PARTS, _PRINTED_LINES = 1 << 12, 16, 20
_BOOT = (
    "import json, os, sys; sys.path[:] = json.loads(os.environ.pop('ASSAY_WORKER_PATH'));"
    " from pipeline.workflow import worker_child; worker_child.serve(*map(int, sys.argv[1:]))"
)


@dataclass
class Settings:
    """How calls are made; the command line sets it once.

    Attributes:
        seconds: How long one call may take.
        memory: Bytes that the child process may hold; None means all but a reserve.
        isolate: Use a child process. Tests that replace our own functions do not.
    """

    seconds: float = 3600.0
    memory: int | None = None
    isolate: bool = True


settings = Settings()
_current: _Child | None = None
_one_call = threading.Lock()


def call(doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Returns what a function of a module returns in the child process.

    Progress that the function prints or shows is printed or shown here.

    Args:
        doing: What the function does, for the message if the process dies.
        args: Arguments that can be pickled.

    Raises:
        CrashedError: The process died, or took too long or all memory.
    """
    if not settings.isolate or ALONE in os.environ:
        return function(*args, **kwargs)
    with _one_call:
        child = _child()
        try:
            answer: T = child.call(doing, (function, args, kwargs))
        except BaseException as error:
            # A child that only raised an error can be used again.
            if not isinstance(error.__cause__, ChildError):
                end()
            raise
    return answer


def call_alone(doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Does what `call` does in a new child process, which ends with the call.

    So it has the memory of this machine, and of a GPU, to itself.
    """
    end()
    try:
        return call(doing, function, *args, **kwargs)
    finally:
        end()


def end() -> None:
    """Ends the child process, if one runs: its libraries hold memory, on a GPU too."""
    global _current
    child, _current = _current, None
    if child is not None:
        child.end()


atexit.register(end)


def _child() -> _Child:
    global _current  # noqa: PLW0603 - one child a process
    if _current is not None and not _current.usable():
        end()
    if _current is None:
        _current = _Child()
    return _current


class _Child:
    """A running child process."""

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._environment = _environment()
        # What libraries leave in the folder for temporary files goes with the child.
        self._files = contextlib.ExitStack()
        folder = self._files.enter_context(temporary.folder())
        from multiprocessing import connection  # which `assay --help` does not need

        ours, theirs = connection.Pipe()
        in_main = threading.current_thread() is threading.main_thread()
        with contextlib.closing(theirs), _without_interrupts():
            printing = console.LIBRARY_OUTPUT in os.environ
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOT, str(theirs.fileno()), str(int(in_main))],
                stdin=subprocess.DEVNULL,
                stdout=_terminal() if printing else subprocess.PIPE,  # never on our stdout
                stderr=None if printing else subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    "ASSAY_WORKER_PATH": json.dumps(sys.path),
                    "TMPDIR": str(folder),
                    ALONE: "1",
                },
            )
        self._connection = ours
        self._printed = deque[bytes](maxlen=_PRINTED_PARTS)
        self._reader = threading.Thread(target=self._read_printed, daemon=True)
        self._reader.start()

    def _read_printed(self) -> None:
        """Keeps the end of what libraries print in the child, in case it dies."""
        if self._process.stdout is not None:
            with self._process.stdout as stream:
                while part := os.read(stream.fileno(), _PART_BYTES):
                    self._printed.append(part)

    def usable(self) -> bool:
        """Returns whether it still runs, in the environment of now."""
        same = self._environment == _environment() and self._owner == os.getpid()
        return same and self._process.poll() is None

    def call(self, doing: str, work: tuple[Any, ...]) -> Any:
        deadline = time.monotonic() + settings.seconds
        try:
            self._connection.send((Path.cwd(), sys.path, pickle.dumps(work)))
            with _bars() as bars:
                while True:
                    self._wait(doing, deadline)
                    message: Message = self._connection.recv()
                    if message.kind == "doing":
                        doing = message.value
                    elif message.kind == "returned":
                        return message.value
                    elif message.kind == "raised":
                        raise message.value from ChildError(message.text)
                    else:
                        bars(message)
        except (EOFError, ConnectionError):
            death = self._death()
            self._show_printed()
            raise CrashedError(
                f"{death} ended the process while {doing}",
                "the lines above, if any, are its library's; leave the engine out with --engine",
            ) from None

    def _wait(self, doing: str, deadline: float) -> None:
        """Waits for a message; raises CrashedError if the child exceeds its time or memory."""
        while True:
            arrived = self._connection.poll(_POLL_SECONDS)
            if time.monotonic() > deadline:
                raise CrashedError(
                    f"stopped after {settings.seconds:g} s while {doing}",
                    "raise --time-limit if it only needs longer",
                )
            if arrived:
                return
            free, used = hardware.free_memory(), hardware.resident_memory(self._process.pid)
            too_much = used > (settings.memory or used) or (free < _RESERVE_BYTES and used > free)
            if too_much:
                raise CrashedError(
                    f"stopped while {doing}: the process took {used / 2**30:.1f} GiB of memory,"
                    f" and {free / 2**30:.1f} GiB were left",
                    "raise --memory-limit, if it is given, or use a machine with more memory",
                )

    def _death(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"exit code {code}"
        number = -code
        try:
            name = f" ({signal.Signals(number).name})"
        except ValueError:
            name = ""
        return f"signal {number}{name}"

    def _show_printed(self) -> None:
        """Prints the last lines of the libraries of a child that has died."""
        self._reader.join(timeout=1)  # a process that the child started may still hold the pipe
        lines = b"".join(self._printed).decode(errors="replace").splitlines()
        for line in lines[-_PRINTED_LINES:]:
            console.say(line)

    def end(self) -> None:
        if self._owner != os.getpid():
            return  # a fork of ours; the child is its parent's
        self._connection.close()
        self._process.kill()
        self._process.wait()
        self._files.close()


def _environment() -> dict[str, str]:
    """Returns the environment, without what pytest changes for each test."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}


def _terminal() -> int:
    """Returns the descriptor of stderr, or one that discards all if it is closed."""
    try:
        return subprocess.DEVNULL if sys.__stderr__ is None else sys.__stderr__.fileno()
    except (OSError, ValueError):
        return subprocess.DEVNULL


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Blocks SIGINT in child processes that are started, which inherit that.

    They get those of the terminal, too, and Python would print a traceback before it runs `serve`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _bars() -> Iterator[Callable[[Message], None]]:
    """Yields a function that shows the child's progress messages here."""
    with contextlib.ExitStack() as stack:
        open_bars: list[tuple[contextlib.ExitStack, console.Bar]] = []

        def show(message: Message) -> None:
            if message.kind == "say":
                console.say(message.text)
            elif message.kind == "bar":
                own = stack.enter_context(contextlib.ExitStack())
                open_bars.append((own, own.enter_context(console.bar(message.text, message.value))))
            elif message.kind == "advance":
                open_bars[-1][1].advance(message.value, message.text)
            elif message.kind == "line":
                open_bars[-1][1].line(message.text)
            elif message.kind == "end of bar":
                open_bars.pop()[0].close()

        yield show

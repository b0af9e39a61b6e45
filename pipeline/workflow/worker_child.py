"""The child process of `worker`: calls the functions that its parent names."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.workflow import console

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# In the environment of a child: what it calls is not to start children of its own.
ALONE = "ASSAY_WORKER"
_PARENT_DEATH = 1  # Linux's PR_SET_PDEATHSIG


@dataclass(frozen=True)
class Message:
    """What a child tells its parent.

    Attributes:
        kind: "returned", "raised", "doing", "say", "bar", "advance", "line" or "end of bar".
        text: A line, the name of a bar, or a traceback.
        value: The result, the exception, or the length of a bar or of a step.
    """

    kind: str
    text: str = ""
    value: Any = None


class ChildError(Exception):
    """The traceback of an exception in the child, as the cause of the one in the parent."""


_parent: Connection[Message, Any] | None = None


def doing(text: str) -> None:
    """Tells the parent, if there is one, what a crash from here on would interrupt."""
    _send(Message("doing", value=text))


def serve(descriptor: int, in_main: int) -> None:
    """Answers calls until the parent closes its end.

    Args:
        descriptor: File descriptor of our end of the pipe.
        in_main: The parent's main thread has started this process, which is not 0 then.
    """
    from multiprocessing.connection import Connection

    global _parent  # noqa: PLW0603 - a child has one parent
    # The parent gets the terminal's signals as well, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(bool(in_main))
    _be_killed_first()
    _parent = Connection(descriptor)
    console.settings.listener = lambda line: _send(Message("say", line))
    console.settings.bar = _bar
    with console.own_log(), contextlib.suppress(EOFError, ConnectionError):
        while True:
            folder, path, work = _parent.recv()
            os.chdir(folder)
            sys.path[:] = path
            _send(_answer(*pickle.loads(work)))  # noqa: S301 - our own bytes


def _answer(function: Any, args: Any, kwargs: Any) -> Message:
    try:
        answer = Message("returned", value=function(*args, **kwargs))
    except Exception as error:
        answer = Message("raised", traceback.format_exc(), error)
    try:
        pickle.loads(pickle.dumps(answer))  # noqa: S301 - our own bytes
    except Exception:  # an exception of a library that cannot be rebuilt from its pickle
        text = answer.text or traceback.format_exc()
        answer = Message("raised", text, RuntimeError(text.strip().splitlines()[-1]))
    return answer


def _send(message: Message) -> None:
    if _parent is not None:
        _parent.send(message)


class _Bar(console.Bar):
    """A progress bar that the parent draws."""

    def __init__(self) -> None:
        super().__init__(None, None)

    def advance(self, amount: float, text: str = "") -> None:
        _send(Message("advance", text, amount))

    def line(self, text: str) -> None:
        _send(Message("line", text))


@contextmanager
def _bar(description: str, total: float) -> Iterator[console.Bar]:
    _send(Message("bar", description, total))
    try:
        yield _Bar()
    finally:
        _send(Message("end of bar"))


def end_with_parent(in_main: bool = True) -> None:
    """Makes this process end when its parent dies, however it dies.

    Args:
        in_main: The parent's main thread has started this process.
    """
    if in_main and sys.platform == "linux":
        # By the kernel: when the thread ends that has started this process.
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _be_killed_first() -> None:
    """Makes the kernel choose this process, not its parent, if memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")

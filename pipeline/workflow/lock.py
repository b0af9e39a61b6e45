"""A file lock that lets one process at a time run a stage; the others wait."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engines.errors import DeployError
from pipeline.workflow import console

_POLL_SECONDS = 0.1


@contextmanager
def held(path: Path, name: str, patience: float) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`.

    The kernel drops the lock when the process ends, however it ends, so no lock is ever stale.

    Args:
        path: The lock file; it is not removed.
        name: What is locked, for the message.
        patience: Seconds to wait for another process.

    Raises:
        DeployError: Another process still holds the lock after `patience` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open_lock(path, os.O_CREAT)
    try:
        _acquire(file, path, name, patience)
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
        with contextlib.suppress(OSError):  # only for messages: a full disk does not matter
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(holder).encode(), 0)
        yield
    finally:
        os.close(file)


def open_lock(path: Path, flags: int = 0) -> int:
    """Returns the descriptor of a lock file.

    Args:
        flags: More flags for opening it, such as O_CREAT.

    Raises:
        OSError: It cannot be opened, or is not a file.
    """
    flags |= os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(errno.EINVAL, "not a file; remove it", str(path))
    return file


def _acquire(file: int, path: Path, name: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= deadline:
            raise DeployError(
                f"{name} is being run by {_holder(path)}",
                "wait for it to end, or raise --wait",
            )
        if not told:
            console.say(f"{name}: waiting for {_holder(path)}")
            told = True
        time.sleep(_POLL_SECONDS)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        seconds = int(time.time()) - holder["since"]
        return f"process {holder['pid']} on {holder['host']}, since {seconds} s"
    except (ValueError, KeyError, OSError):
        return "another process"  # it has the lock but has not written its name yet

"""A file lock that lets one process at a time run a stage; the others wait."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

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
    with path.open("a+", encoding="utf-8") as file:
        _acquire(file, path, name, patience)
        file.seek(0)
        file.truncate()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": int(time.time())}
        file.write(json.dumps(holder))
        file.flush()
        yield


def _acquire(file: IO[str], path: Path, name: str, patience: float) -> None:
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

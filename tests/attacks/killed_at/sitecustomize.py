"""Kills the process with SIGKILL just before one of its operations on files, or counts them.

Python imports this module at its start. ASSAY_TEST_KILL_AT is the number of the operation, from 1;
or else, ASSAY_TEST_COUNT names a file that gets the number of operations.
"""

import atexit
import os
import signal
import sys
from pathlib import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
_FOLDERS = tuple(f"{Path.cwd()}/{name}/" for name in ("artifacts", "dist"))
_kill_at = int(os.environ.get("ASSAY_TEST_KILL_AT", "0"))
_state = {"operations": 0}


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        path, _, flags = arguments
        if not isinstance(flags, int) or not flags & _WRITING:
            return
    elif event in _EVENTS:
        path = arguments[0]
    else:
        return
    if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(_FOLDERS):  # noqa: PTH100 - resolving would open files
        _state["operations"] += 1
        if _state["operations"] == _kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _write() -> None:
    Path(os.environ["ASSAY_TEST_COUNT"]).write_text(str(_state["operations"]), encoding="ascii")


if "ASSAY_WORKER" not in os.environ:  # the child of a command
    sys.addaudithook(_count)
    if "ASSAY_TEST_COUNT" in os.environ:
        atexit.register(_write)

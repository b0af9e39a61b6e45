"""Removes what stages left behind whose process was killed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from engines import temporary
from pipeline.workflow.artifacts import LOCKS
from pipeline.workflow.lock import open_lock

_PREFIX = ".tmp-"
_DEPTH = 5  # of files in the root folder, such as lenet/fp32/onnxruntime/build.json


def prefix(root: Path, lock: str) -> str:
    """Returns how the names of a stage's temporary folders begin, in the root or the dist folder.

    Args:
        root: Folder of the artifacts. Several may share one dist folder.
        lock: Name of the stage's lock file.
    """
    return f"{_PREFIX}{lock}.{_digest(root)}."


def sweep(root: Path, dist: Path) -> None:
    """Removes temporary files and folders of processes that have ended, and of their stages."""
    temporary.sweep()
    if (root / LOCKS).is_dir():  # not a search through a folder of other things
        for depth in range(_DEPTH):
            temporary.sweep_parts(root.glob("*/" * depth + f".*{temporary.PART}"))
    for folder in (root, dist):
        for path in folder.glob(f"{_PREFIX}*.{_digest(root)}.*"):
            lock = path.name.removeprefix(_PREFIX).rpartition(f".{_digest(root)}.")[0]
            if _is_free(root / LOCKS / lock):
                shutil.rmtree(path, ignore_errors=True)


def _digest(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]


def _is_free(lock: Path) -> bool:
    """Whether no process holds a lock, or this one may not ask."""
    try:
        file = open_lock(lock)
    except OSError:
        return not lock.exists()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True

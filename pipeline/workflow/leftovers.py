"""Removes the temporary folders of stages whose process was killed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from pipeline.workflow.artifacts import LOCKS

_PREFIX = ".tmp-"


def prefix(root: Path, lock: str) -> str:
    """Returns how the names of a stage's temporary folders begin, in the root or the dist folder.

    Args:
        root: Folder of the artifacts. Several may share one dist folder.
        lock: Name of the stage's lock file.
    """
    return f"{_PREFIX}{lock}.{_digest(root)}."


def sweep(root: Path, dist: Path) -> None:
    """Removes the temporary folders of stages that are not running."""
    for folder in (root, dist):
        for path in folder.glob(f"{_PREFIX}*.{_digest(root)}.*"):
            lock = path.name.removeprefix(_PREFIX).rpartition(f".{_digest(root)}.")[0]
            if _is_free(root / LOCKS / lock):
                shutil.rmtree(path, ignore_errors=True)


def _digest(root: Path) -> str:
    return hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]


def _is_free(lock: Path) -> bool:
    """Whether no process holds a lock, or this one may not ask."""
    with contextlib.suppress(OSError), lock.open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return not lock.exists()

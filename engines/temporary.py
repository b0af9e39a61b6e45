"""Temporary files and folders that are removed even if their process is killed, and full disks.

Each is locked while it is in use, and the kernel drops the lock when the process ends, however it
ends. So what is not locked is left over, on whichever machine or in whichever container it was
made.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.errors import DeployError

if sys.platform != "win32":  # there, nothing is locked, and nothing removed
    import fcntl

PREFIX = "assay-tmp-"  # of temporary folders
PART = ".part"  # suffix of files that will replace others
TMPDIR_HINT = "free some space there, or set TMPDIR to a folder that has more"
# A disk with less space is full. Not 0: what does not fit is not always written in part.
_FULL_BYTES = 1 << 16


@contextmanager
def folder() -> Iterator[Path]:
    """Yields a new folder below TMPDIR, which is removed when the block ends.

    Raises:
        DeployError: Its disk is full, whatever the block raised because of that.
    """
    sweep()
    base = Path(tempfile.gettempdir())

    def create() -> Path:
        with full_disk_named({base: TMPDIR_HINT}):
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))

    with _locked(create) as path:
        try:
            with full_disk_named({base: TMPDIR_HINT}):  # while the block's files are there
                yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Yields a new folder beside a path, which is removed when the block ends, unless renamed."""
    prefix = f".{path.name}."
    for stale in path.parent.glob(f"{glob.escape(prefix)}*{PART}"):
        _remove_unlocked(stale, lambda stale: shutil.rmtree(stale, ignore_errors=True))

    def create() -> Path:
        new = Path(tempfile.mkdtemp(PART, prefix, path.parent))
        new.chmod(0o755)  # it may become `path`, which others may read
        return new

    with _locked(create) as new:
        try:
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)


@contextmanager
def part(path: Path) -> Iterator[None]:
    """Makes an empty file, which is removed when the block ends, unless it was renamed."""

    def create() -> Path:
        path.touch()
        return path

    with _locked(create):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def _locked(create: Callable[[], Path]) -> Iterator[Path]:
    """Yields what `create` makes, locked; makes it again if it was removed before the lock."""
    if sys.platform == "win32":
        yield create()
        return
    while True:
        path = create()
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                yield path
                return
        finally:
            os.close(lock)


def sweep() -> None:
    """Removes the temporary folders of this user's processes that were killed."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_unlocked(path, lambda path: shutil.rmtree(path, ignore_errors=True))


def sweep_parts(paths: Iterable[Path]) -> None:
    """Removes those of some files of `part` whose process was killed."""
    for path in paths:
        _remove_unlocked(path, Path.unlink)


def _remove_unlocked(path: Path, remove: Callable[[Path], None]) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError):  # it is locked, or has been removed
        lock = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            state = os.fstat(lock)
            ours = stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)
            if ours and state.st_uid == os.getuid():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                remove(path)
        finally:
            os.close(lock)


@contextmanager
def full_disk_named(hints: dict[Path, str]) -> Iterator[None]:
    """Turns an error of the block into one that names the full disk, if that is the cause.

    Libraries raise errors of their own if a file cannot be written, or read since it was not
    written to its end. So the disks are looked at, while the block's files are still there.

    Args:
        hints: What to do about a full disk, by a folder on it.
    """
    try:
        yield
    except Exception as error:
        if full := full_disk(error, hints):
            raise full from error
        raise


def full_disk(error: Exception, hints: dict[Path, str]) -> DeployError | None:
    """Returns an error that names the folder whose disk is full; None if that is not the cause."""
    free = {path: _free(path) for path in hints}
    path = min(free, key=lambda path: free[path])
    detail = f": {error}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        detail = "" if error.filename is None else f": cannot write {error.filename}"
    elif free[path] >= _FULL_BYTES:
        return None
    return DeployError(f"the disk of {path} is full{detail}", hints[path])


def _free(path: Path) -> int:
    """Returns the free bytes of a folder's disk; more than any disk has if that is unknown."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 1 << 62

"""The one cache folder, writing a file whole or not at all, and names that files can have."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_folder() -> Path:
    """Returns where what can be made again is kept between runs, for all checkouts of a user.

    ASSAY_CACHE, or the folder that the platform has for it: `~/.cache/assay` on Linux, or below
    XDG_CACHE_HOME.
    """
    if chosen := os.environ.get("ASSAY_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("assay", appauthor=False)


def compiled_by_torch() -> Path:
    """Keeps what torch.compile compiles in the cache folder too, unless torch is told otherwise.

    Returns:
        The folder, which torch reads from TORCHINDUCTOR_CACHE_DIR.
    """
    folder = str(cache_folder() / "torchinductor")
    return Path(os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder))


def slug(text: str) -> str:
    """Returns a text as it can stand in the name of a file, on any file system."""
    return re.sub(r"[^\w.+-]+", "-", text)


def keep(path: Path, content: bytes) -> None:
    """Writes a file of the cache, if it can be written."""
    with suppress(OSError), write_atomic(path) as part:
        part.write_bytes(content)


@contextmanager
def write_atomic(path: Path) -> Iterator[Path]:
    """Gives a file beside `path` to write, and puts it in its place once the block has ended.

    A reader, and a machine that crashes, finds the old content or the new one, never a part. If
    the block raises, the old content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident():x}")
    try:
        yield part
        sync(part)
        part.replace(path)
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Forces a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The cache folder, atomic writing of files, and names that are valid for files."""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from engines import temporary
from engines.errors import UsageError


def cache_folder() -> Path:
    """Returns the folder for files that can be made again, shared by all checkouts of a user.

    It is ASSAY_CACHE, or else the platform's cache folder: `~/.cache/assay` on Linux, or `assay`
    below XDG_CACHE_HOME.
    """
    if chosen := os.environ.get("ASSAY_CACHE"):
        return Path(chosen).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("assay", appauthor=False)


def set_torch_cache() -> Path:
    """Puts torch.compile's cache into the cache folder, unless TORCHINDUCTOR_CACHE_DIR is set.

    Where the cache folder cannot be written, as for a user without a home, it is a temporary one:
    torch makes its cache even if it compiles nothing.

    Returns:
        The folder, which torch reads from that variable.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        folder = cache_folder() / "torchinductor"
        if not _can_be_made(folder):
            files = ExitStack()
            folder = files.enter_context(temporary.folder())
            atexit.register(files.close)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def _can_be_made(folder: Path) -> bool:
    """Whether a folder exists and can be written in, or could be made."""
    while not os.access(folder, os.F_OK) and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def slug(text: str) -> str:
    """Returns a text in a form that is valid in a file name on any file system."""
    return re.sub(r"[^\w.+-]+", "-", text)


def keep(path: Path, content: bytes) -> None:
    """Writes a file of the cache; does nothing if it cannot be written."""
    with suppress(OSError), write_atomic(path) as part:
        part.write_bytes(content)


@contextmanager
def write_atomic(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """Yields a temporary file to write, which replaces `path` once the block has ended.

    Readers find the old content or the new one, never a part of it, even after a crash. If the
    block raises, the old content stays.

    Args:
        replace: Replace what is there; else what came to be there meanwhile stays.

    Raises:
        UsageError: Something is there, and is not to be replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary.sweep_parts(path.parent.glob(f".*{temporary.PART}"))
    name = f".{path.name}.{os.getpid()}-{threading.get_ident():x}{temporary.PART}"
    part = path.with_name(name)
    with temporary.part(part):
        yield part
        sync(part)
        if replace:
            part.replace(path)
        else:
            _put(part, path)
        sync(path.parent)


def require_new(path: Path) -> None:
    """Raises UsageError if something has this path, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise UsageError(f"{path} exists, and is not replaced", "give another --out FILE")


def _put(part: Path, path: Path) -> None:
    """Gives a finished file its name; raises UsageError if the name is taken."""
    try:
        os.link(part, path)
    except OSError:
        require_new(path)
        part.replace(path)  # on a file system without links
    else:
        part.unlink()


def sync(path: Path) -> None:
    """Forces a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The one cache folder, and writing a file into it whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path


def cache_folder() -> Path:
    """Returns where what can be made again is kept between runs: ASSAY_CACHE, or the user's.

    Of the user's there is one a machine: XDG Base Directory Specification, version 0.8.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("ASSAY_CACHE") or f"{base}/assay").expanduser()


def as_name(text: str) -> str:
    """Returns a text as it can stand in the name of a file."""
    return re.sub(r"[^0-9A-Za-z.]+", "-", text)


def write_whole(path: Path, content: bytes) -> None:
    """Keeps bytes in the cache folder, whole or not at all; that it cannot is no failure."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        part = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

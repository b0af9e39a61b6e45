"""What a model gives in float64, kept from one export to the next.

It is the same for every precision, and with a whole test set it takes the most time of an export.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from engines.base import Array
from pipeline.digests import sha256_json


class Memo:
    """Outputs by name, in one file, good for one key alone."""

    def __init__(self, path: Path, key: str) -> None:
        """Reads what is there. A file of another key, or a damaged one, is as good as none."""
        self._path = path
        self._kept: dict[str, Any] = {"key": np.array(key)}
        with (
            contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
            path.open("rb") as file,  # of a damaged one, numpy would leave its own open
            np.load(file, allow_pickle=False) as archive,
        ):
            if str(archive["key"]) == key:
                self._kept = {name: archive[name] for name in archive.files}

    def outputs(self, part: str, compute: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        """Returns the outputs of a part: kept ones, or what `compute` gives, which is then kept."""
        prefix = f"{part}/"
        found = {
            name.removeprefix(prefix): array
            for name, array in self._kept.items()
            if name.startswith(prefix)
        }
        if not found:
            found = compute()
            self._kept |= {prefix + name: array for name, array in found.items()}
            self._save()
        return found

    def _save(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            with beside.open("wb") as file:
                np.savez(file, **self._kept)
            beside.replace(self._path)
        finally:
            beside.unlink(missing_ok=True)


def key_of(said: Any, arrays: Iterable[tuple[str, Array]]) -> str:
    """Returns the digest of a JSON value and of named arrays."""
    digests = [
        (
            name,
            str(array.dtype),
            array.shape,
            hashlib.sha256(array.tobytes()).hexdigest(),
        )
        for name, array in arrays
    ]
    return sha256_json([said, digests])

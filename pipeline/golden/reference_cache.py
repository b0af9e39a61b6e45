"""A cache of a model's float64 outputs, kept from one export to the next.

They are the same for every precision, and with a whole test set take most of an export's time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from engines.cache import write_atomic
from engines.contract import Array
from pipeline.golden import npz
from pipeline.workflow import console
from pipeline.workflow.digests import sha256_json


class ReferenceCache:
    """Outputs by part and name, in one file that is valid for one key.

    Only a cache: a missing, stale or unreadable file is ignored.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._kept: dict[str, dict[str, Array]] = {}
        self._new = False
        # zipfile, zlib and numpy raise many types on a damaged file.
        with contextlib.suppress(Exception):
            if path.is_file():
                self._kept = _read(path, key)

    def outputs(
        self,
        part: str,
        compute: Callable[[], dict[str, Array]],
        holds: Callable[[dict[str, Array]], bool] = lambda _: True,
    ) -> dict[str, Array]:
        """Returns the outputs of a part: cached ones, or those of `compute`, which are then cached.

        Args:
            holds: Whether cached outputs are still the model's; if not, all parts are dropped.
        """
        if part in self._kept and not holds(self._kept[part]):
            self._kept = {}
        if part not in self._kept:
            self._kept[part] = compute()
            self._new = True
        return self._kept[part]

    def save(self) -> None:
        """Replaces the file atomically, if there are new outputs."""
        if not self._new:
            return
        names = [(part, name) for part, outputs in self._kept.items() for name in outputs]
        arrays = {str(index): self._kept[part][name] for index, (part, name) in enumerate(names)}
        index = json.dumps({"key": self._key, "names": names}).encode()
        try:
            with write_atomic(self._path) as part, part.open("wb") as file:
                np.savez(file, index=np.frombuffer(index, np.uint8), **arrays)  # type: ignore[arg-type]  # its stub is too narrow
        except OSError as error:
            reason = error.strerror or error
            console.say(f"export: float64 outputs not kept in {self._path}: {reason}")


def _read(path: Path, key: str) -> dict[str, dict[str, Array]]:
    kept: dict[str, dict[str, Array]] = {}
    arrays = npz.read(path)
    index = json.loads(arrays["index"].tobytes())
    if index["key"] == key:
        for position, (part, name) in enumerate(index["names"]):
            kept.setdefault(part, {})[name] = arrays[str(position)]
    return kept


def key_of(facts: Any, arrays: Iterable[tuple[str, Array]]) -> str:
    """Returns the digest of a JSON value and of named arrays."""
    digests = [
        (name, str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).hexdigest())
        for name, array in arrays
    ]
    return sha256_json([facts, digests])

"""SHA-256 digests, JSON files, and checks that a file or its folder exists."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from engines.cache import write_atomic
from engines.errors import DeployError, UsageError

_MAX_JSON_BYTES = 64 << 20


def open_file(path: Path) -> BufferedReader:
    """Opens a file for reading.

    Raises:
        DeployError: It is a folder, or something that reading might wait for, such as a pipe.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DeployError(f"{path} is not a file", "remove it and run the command again")
    return os.fdopen(descriptor, "rb")


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal; see `open_file`."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path, hint: str = "give the path of a file") -> None:
    """Raises DeployError, with the hint, unless the path is a file."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise DeployError(f"{path} {problem}", hint)


def require_parent(path: Path) -> None:
    """Raises UsageError unless the folder exists that a file is to be written to."""
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.absolute().parent} is not a folder", "create it first")


def require_output(path: Path) -> None:
    """Raises UsageError unless a file can be written to a path: a new one, or in place of one."""
    require_parent(path)
    if path.exists() and not path.is_file():  # to replace a device would harm the machine
        raise UsageError(f"{path} is not a file", "give the path of a new file")


def sha256_json(content: Any) -> str:
    """Returns the SHA-256 of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def dump_json(content: Any) -> bytes:
    """Returns a JSON value as it is written to files: indented, keys sorted, NaN refused."""
    return (json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON value to a file that no one reads yet; see `replace_json` for others."""
    path.write_bytes(dump_json(content))


def parse_json(content: bytes) -> Any:
    """Returns the value of a JSON text that can also be printed.

    Raises:
        ValueError: It is not valid JSON in UTF-8, repeats a key, or has a number that is not
            finite or text that is not valid Unicode (such as half of a surrogate pair).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise ValueError("it repeats a key")
        return mapping

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:40]} is not a finite number")
        return value

    try:
        text = content.decode()
        value = json.loads(
            text, object_pairs_hook=unique, parse_float=finite, parse_constant=finite
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DeployError: It is not a file, not valid JSON (see `parse_json`), or larger than 64 MiB.
    """
    try:
        with open_file(path) as file:
            content = file.read(_MAX_JSON_BYTES + 1)
        if len(content) > _MAX_JSON_BYTES:
            raise ValueError(f"it is larger than {_MAX_JSON_BYTES >> 20} MiB")
        return parse_json(content)
    except ValueError as error:
        raise DeployError(
            f"{path} is not valid JSON: {error}", "remove it and run the stage that made it"
        ) from error


def replace_json(path: Path, content: Any) -> None:
    """Replaces a JSON file atomically: a reader sees the old content or the new."""
    with write_atomic(path) as part:
        write_json(part, content)

"""SHA-256 digests, JSON files, and checks that a file exists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from engines.cache import write_atomic
from engines.errors import DeployError


def sha256_file(path: Path) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_file(path: Path, hint: str = "give the path of a file") -> None:
    """Raises DeployError, with the hint, unless the path is a file."""
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise DeployError(f"{path} {problem}", hint)


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


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        DeployError: The file is not valid JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DeployError(
            f"{path} is not valid JSON: {error}", "remove it and run the stage that made it"
        ) from error


def replace_json(path: Path, content: Any) -> None:
    """Replaces a JSON file atomically: a reader sees the old content or the new."""
    with write_atomic(path) as part:
        write_json(part, content)

"""Checks of the values that callers pass."""

from __future__ import annotations

import math
import os
from numbers import Real
from pathlib import Path
from typing import Any

from engines.errors import UsageError

MAX_THREADS = 1024


def path(name: str, value: Any) -> Path:
    """Returns a path; raises UsageError if the value is not one."""
    if not isinstance(value, str | os.PathLike) or not str(value).isprintable():
        raise UsageError(f"{name} {value!r} is not a path", "give the path of a file")
    return Path(value)


def text(name: str, value: Any, hint: str) -> str:
    """Returns a text; raises UsageError with the hint if it is not one."""
    if not isinstance(value, str):
        raise UsageError(f"{name} {value!r} is not a text", hint)
    return value


def number(name: str, value: Any, most: float = math.inf, *, zero: bool = False) -> float:
    """Returns a number up to a bound; raises UsageError if the value is not one.

    Args:
        zero: It may be 0; else it has to be above.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise UsageError(f"{name} {value!r} is not a number", "give a number")
    size = float(value)
    if not ((size > 0 or (zero and size == 0)) and size <= most and math.isfinite(size)):
        least = "0 or more" if zero else "more than 0"
        upto = f", and at most {most:g}" if math.isfinite(most) else ""
        raise UsageError(f"{name} {value} is out of range", f"give {least}{upto}")
    return size


def whole(name: str, value: Any, most: int) -> int:
    """Returns a whole number from 1; raises UsageError if the value is not one."""
    count = number(name, value, most)
    if count != int(count):
        raise UsageError(f"{name} {value} is not whole", "give a whole number")
    return int(count)

"""Times and sizes in words."""

from __future__ import annotations

import re
from collections.abc import Mapping

from engines.errors import UsageError

# Units by the number of seconds that they are.
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
_SECONDS = {name: unit for unit, name in _UNITS}
_MOST = 1e12  # of a unit that is written


def duration(seconds: float) -> str:
    """Returns a time with four digits at most and a unit, such as "54.3 µs" or "1.51 ms"."""
    unit, name = next((entry for entry in _UNITS if seconds >= entry[0]), _UNITS[-1])
    value = seconds / unit
    digits = 2 if value < 10 else 1 if value < 100 else 0  # noqa: PLR2004
    return f"{value:,.{digits}f} {name}"


def seconds(text: str) -> float:
    """Returns a time that is written as in 5ms, 800us or 0.1s.

    Raises:
        UsageError: It is written in another way, or is not above 0.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?(us|[µ\u03bc]s|ms|s)", text)
    if match is None or not 0 < float(match[1]) < _MOST:
        raise UsageError(f"{text!r:.60} is not a time", "write it as in 5ms, 800us or 0.1s")
    return float(match[1]) * _SECONDS[re.sub("[u\u03bc]", "µ", match[2])]


def size(count: int) -> str:
    """Returns a number of bytes with its unit, such as "12.3 KiB" or "1,021.0 MiB"."""
    if count < 2**20:
        return f"{count / 2**10:,.1f} KiB"
    return f"{count / 2**20:,.1f} MiB"


def byte_count(text: str) -> int:
    """Returns a size that is written as in 500MB, 1.5GB or 256MiB.

    Raises:
        UsageError: It is written in another way, or is not above 0.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+) ?([kMG]i?B)", text)
    if match is not None and float(match[1]) < _MOST:
        base = 1024.0 if "i" in match[2] else 1000.0
        if count := round(float(match[1]) * base ** ("kMG".index(match[2][0]) + 1)):
            return count
    raise UsageError(f"{text!r:.60} is not a size", "write it as in 500MB, 1.5GB or 256MiB")


def times_as_long(ratio: Mapping[str, float]) -> dict[str, float]:
    """Returns how many times as long as the baseline something takes, from a result's ratio."""
    return {"value": 1 / ratio["value"], "low": 1 / ratio["high"], "high": 1 / ratio["low"]}

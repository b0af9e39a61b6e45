"""What a Triton configuration says as text, and checks of single values in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.workflow.digests import open_file

MAX_BYTES = 1 << 20
# Texts and comments, in which no field is.
_TEXTS = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|#[^\n]*")
_OPENING, _CLOSING = "[{<", "]}>"


def content(path: Path) -> bytes:
    """Returns the beginning of a small file, one byte more than it may have."""
    with open_file(path) as file:
        return file.read(MAX_BYTES + 1)


def counts_below_one(text: str) -> bool:
    """Whether an instance group has a count below 1: as a number, 0 is the same as no count."""
    groups = "".join(_blocks(_TEXTS.sub('""', text), "instance_group"))
    for block in _blocks(groups, "rate_limiter"):
        groups = groups.replace(block, "")
    return re.search(r"\bcount\s*:\s*(0+|0[xX]0+|-\s*\d+)\b", groups) is not None


def _blocks(text: str, field: str) -> Iterator[str]:
    """Yields the values of a field as text."""
    for match in re.finditer(rf"\b{field}\s*:?\s*(?=[\[{{<])", text):
        depth = 0
        for end in range(match.end(), len(text)):
            depth += (text[end] in _OPENING) - (text[end] in _CLOSING)
            if not depth:
                yield text[match.end() : end]
                break


def within(name: str) -> bool:
    """Whether a file's name stays in the folder that it is meant for."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def fits(dims: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether dims are the expected ones, or fix an axis that may have any size."""
    return len(dims) == len(expected) and all(
        wanted in (dim, -1) for dim, wanted in zip(dims, expected, strict=True)
    )

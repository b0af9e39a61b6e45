"""What is printed after the stage data."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.registry import Contents
from pipeline.workflow import console


def show(name: str, folder: Path, contents: Contents) -> None:
    """Prints where a data set's files are and what they hold."""
    shape = "x".join(map(str, contents.shape))
    console.result(f"{name}: {folder} (images {shape}, {len(contents.labels)} classes)")

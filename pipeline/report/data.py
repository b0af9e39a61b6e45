"""The printed report of the data stage."""

from __future__ import annotations

from pathlib import Path

from pipeline.data.registry import Contents
from pipeline.workflow import console


def show(name: str, folder: Path, contents: Contents) -> None:
    """Prints the folder of a data set's files, the image shape and the number of classes."""
    shape = "x".join(map(str, contents.shape))
    console.result(f"{name}: {folder} (images {shape}, {len(contents.labels)} classes)")

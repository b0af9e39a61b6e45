"""The printed report of the data stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.data.registry import Contents
from pipeline.workflow import console

if TYPE_CHECKING:
    from engines.contract import Array

_SHOWN = 40  # classes


def show(name: str, folder: Path, contents: Contents, train: Array, test: Array) -> None:
    """Prints the folder of a data set's files, the image shape, and the images of each class.

    Args:
        train: The class of each training image, int64 `[count]`.
        test: The class of each test image, int64 `[count]`.
    """
    shape = "x".join(map(str, contents.shape))
    console.result(f"{name}: {folder} (images {shape}, {len(contents.labels)} classes)")
    rows = [
        (str(index), label, f"{(train == index).sum():,}", f"{(test == index).sum():,}")
        for index, label in enumerate(contents.labels)
    ]
    if len(rows) > _SHOWN:
        rows = [*rows[:_SHOWN], ("", f"... {len(rows) - _SHOWN} more", "", "")]
    total = ("", "all", f"{len(train):,}", f"{len(test):,}")
    console.table("Classes", (">", "class", ">training images", ">test images"), [*rows, total])

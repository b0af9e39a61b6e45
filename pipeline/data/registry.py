"""Data sets by name, with the digests of their files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines.errors import UsageError, suggestion
from pipeline.workflow.artifacts import FOLDER_PREFIX
from pipeline.workflow.digests import read_json


@dataclass(frozen=True)
class Contents:
    """Image shape and classes of a data set.

    Attributes:
        shape: Channels, height and width of an image.
        labels: The name of each class.
        image_size: The side of the squares that images of a folder were cut to when they were
            decoded; None if they were not.
    """

    shape: tuple[int, int, int]
    labels: tuple[str, ...]
    image_size: int | None = None


def read_contents(path: Path) -> Contents:
    """Reads a data set's `contents.json`, which the data stage writes."""
    description = read_json(path)
    return Contents(
        tuple(description["shape"]), tuple(description["labels"]), description.get("image_size")
    )


@dataclass(frozen=True)
class DataFile:
    """One IDX file of a data set.

    Attributes:
        name: The file's name, without `.gz`.
        sha256: Digest of the uncompressed file.
        md5_gz: Published MD5 of the `.gz` file on the mirrors, or "".
    """

    name: str
    sha256: str
    md5_gz: str = ""


def _from_anywhere(dataset: DataSet) -> dict[str, bytes]:
    from pipeline.data import download

    return download.from_anywhere(dataset)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A labelled image data set in the IDX format. To add one, add an entry to DATASETS.

    Attributes:
        files: Training images and labels, test images and labels.
        contents: Image shape and classes.
        fetch: Gets the files of a data set that is not in the cache: returns the uncompressed
            content of each by its name, or raises DeployError. The caller checks the digests.
        mirrors: URLs of folders that hold the files as `.gz`.
        debian_package: Debian package that holds the files, or "".
        debian_folder: Folder that the package installs the files in.
    """

    name: str
    files: tuple[DataFile, DataFile, DataFile, DataFile]
    contents: Contents
    fetch: Callable[[DataSet], dict[str, bytes]] = _from_anywhere
    mirrors: tuple[str, ...] = ()
    debian_package: str = ""
    debian_folder: Path | None = None


FASHION_MNIST = DataSet(
    name="fashion-mnist",
    files=(
        DataFile(
            "train-images-idx3-ubyte",
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        ),
        DataFile(
            "train-labels-idx1-ubyte",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "25c81989df183df01b3e8a0aad5dffbe",
        ),
        DataFile(
            "t10k-images-idx3-ubyte",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "bef4ecab320f06d8554ea6380940ec79",
        ),
        DataFile(
            "t10k-labels-idx1-ubyte",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            "bb300cfdad3c16e7a12a480ee83cd310",
        ),
    ),
    contents=Contents(
        (1, 28, 28),
        (
            "t-shirt/top",
            "trouser",
            "pullover",
            "dress",
            "coat",
            "sandal",
            "shirt",
            "sneaker",
            "bag",
            "ankle boot",
        ),
    ),
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    debian_package="dataset-fashion-mnist",
    debian_folder=Path("/usr/share/datasets/fashion-mnist"),
)
DATASETS = {FASHION_MNIST.name: FASHION_MNIST}


def names() -> list[str]:
    """Returns the names of the data sets."""
    return sorted(DATASETS)


def get(name: str) -> DataSet:
    """Returns a data set by its name.

    Raises:
        UsageError: No data set has this name.
    """
    if name not in DATASETS:
        if os.path.exists(name):  # noqa: PTH110 - any text is a name
            raise UsageError(f"{name} is not a folder", "give a folder of images with --data")
        raise UsageError(
            f"unknown data set {name!r}, and no folder of that name exists",
            suggestion(name, [*names(), *_folders_like(name)])
            + ", or a folder of images in ImageFolder layout",
        )
    return DATASETS[name]


def _folders_like(name: str) -> list[str]:
    """Returns the folder that is beside a missing one and has the most similar name, if any."""
    try:
        folders = [str(path) for path in Path(name).parent.iterdir() if path.is_dir()]
    except OSError:
        folders = []
    return difflib.get_close_matches(name, folders, n=1, cutoff=0.6)


def check_name(name: str) -> None:
    """Raises UsageError unless a name is that of a known data set or of an image folder's."""
    if not name.startswith(FOLDER_PREFIX):
        get(name)

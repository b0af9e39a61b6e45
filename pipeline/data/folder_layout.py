"""Finding the classes and splits in a folder of images, in the layouts that people have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.errors import DeployError

# The same as torchvision's ImageFolder.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_SPLITS = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev"),
}
# Left behind by archives and file managers; so are all names that begin with a dot.
_IGNORED = ("__MACOSX", "@eaDir", "lost+found")
# Subfolders of data sets whose targets are boxes or masks.
_IMAGES = ("image", "images", "img", "imgs")
_TARGETS = ("label", "labels", "mask", "masks", "annotation", "annotations")
_NAMED = 5  # names in a message
_DEEPEST = 8  # folders that hold nothing but one other folder

Entry = tuple[Path, int]


@dataclass(frozen=True)
class Listing:
    """The images of a folder, sorted by path.

    Attributes:
        train: Path and class of each training image. If the folder is not split, of every image.
        test: Path and class of each test image. None if the folder is not split.
        labels: The names of the classes, which are those of the subfolders, sorted.
        notes: What was left out, for people.
    """

    folder: Path
    train: list[Entry]
    test: list[Entry] | None
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


def scan(folder: Path) -> Listing:
    """Lists a folder whose subfolders are the classes, or the splits with the classes inside.

    Splits are `train` or `training`; `test` or `testing`; and `val`, `valid`, `validation` or
    `dev`. Without `test`, the validation images are the test set. Capitals do not matter. If a
    folder contains only another folder, that one is scanned.

    Raises:
        DeployError: The folder does not exist, has no classes, has something beside its splits, or
            an image in two classes or in both the training and the test set.
    """
    listing = _layout(folder)
    _check_apart(listing)
    return listing


def _layout(folder: Path) -> Listing:
    """Returns the listing of a folder; see `scan`."""
    if not folder.is_dir():
        raise DeployError(f"--data {folder} is not a folder", "give the folder of the images")
    place = _inner(folder)
    splits = _splits(place)
    if not splits:
        labels, entries, notes = _classes(place)
        return Listing(folder, entries, None, tuple(labels), notes)
    if "train" not in splits:
        named = ", ".join(path.name for path in splits.values())
        raise DeployError(
            f"{place} has {named}, but no training images",
            "add a folder train with the same classes",
        )
    labels, train, notes = _classes(_inner(splits["train"]))
    held_out = splits.get("test") or splits.get("validation")
    if held_out is None:
        return Listing(folder, train, None, tuple(labels), notes)
    test_labels, test, more = _classes(_inner(held_out))
    if test_labels != labels:
        odd = sorted(set(labels) ^ set(test_labels))
        raise DeployError(
            f"{splits['train']} and {held_out} have different classes: {', '.join(odd[:_NAMED])}"
            f"{f' and {len(odd) - _NAMED} more' if len(odd) > _NAMED else ''}",
            "give both the same subfolders",
        )
    if len(splits) == len(_SPLITS):
        more += (f"{splits['validation']} is not used: {held_out.name} is the test set",)
    return Listing(folder, train, test, tuple(labels), notes + more)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not ignored(path.name))


def ignored(name: str) -> bool:
    """Whether a file or folder is left out: hidden, or added by an archiver or file manager."""
    return name.startswith(".") or name in _IGNORED


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not ignored(name)


def _images(folder: Path) -> int:
    return sum(_is_image(entry.name) for entry in os.scandir(folder))


def _inner(folder: Path) -> Path:
    """Follows folders that hold one folder only, such as `archive/images`, to the last one.

    The last one has several subfolders: the only subfolder may be the only class, too.
    """
    for _ in range(_DEEPEST):
        inside = _subfolders(folder)
        if len(inside) != 1 or _images(folder) or not _subfolders(inside[0]) or _images(inside[0]):
            break
        folder = inside[0]
    return folder


def _splits(folder: Path) -> dict[str, Path]:
    """Returns the folder of each split; nothing if the folder is not split."""
    splits: dict[str, Path] = {}
    others = []
    for path in _subfolders(folder):
        kind = next((kind for kind, names in _SPLITS.items() if path.name.lower() in names), None)
        if kind is None:
            others.append(path.name)
        elif kind in splits:
            raise DeployError(
                f"{folder} has two folders for {kind}: {splits[kind].name} and {path.name}",
                "move one of them away",
            )
        else:
            splits[kind] = path
    if splits and others:
        split = next(iter(splits.values())).name
        named = ", ".join(others[:_NAMED])
        raise DeployError(
            f"{folder} has {split} beside {named}: a folder holds either splits or classes",
            f"move {named} away, or rename {split} if it is a class",
        )
    return splits


def _classes(folder: Path) -> tuple[list[str], list[Entry], tuple[str, ...]]:
    """Returns the classes in a folder, the path and class of every image, and notes."""
    labels = [path.name for path in _subfolders(folder)]
    _check_no_targets(folder, labels)
    if not labels:
        raise DeployError(
            f"{folder} has no subfolders", "put the images of each class in a folder of its own"
        )
    if len(labels) == 1:
        raise DeployError(
            f"{folder} has one class only, {labels[0]}", "give the folder of at least two classes"
        )
    entries: list[Entry] = []
    for index, label in enumerate(labels):
        if not _is_text(label):
            raise DeployError(
                f"{folder}: the name of the class {os.fsencode(label)!r} is not UTF-8",
                "rename its folder",
            )
        paths = sorted(path for path in _files(folder / label) if _is_image(path.name))
        if not paths:
            raise DeployError(
                f"{folder / label} has no images ({', '.join(EXTENSIONS)})",
                "remove the folder, or put images there",
            )
        entries += [(path, index) for path in paths]
    loose = _images(folder)
    notes = (f"left out {loose} images in {folder} that are in no class",) if loose else ()
    return labels, entries, notes


def _check_no_targets(folder: Path, names: list[str]) -> None:
    """Raises DeployError for the layout of object detection or segmentation."""
    images = [name for name in names if name.lower() in _IMAGES]
    targets = [name for name in names if name.lower() in _TARGETS]
    if images and targets:
        raise DeployError(
            f"{folder} has {images[0]} beside {targets[0]}: these are no classes, but images and"
            " what to find in them, as for object detection or segmentation",
            "assay trains classifiers: give a folder with a subfolder of images for each class. A"
            " network for other tasks needs no --data: give its --weights, and golden inputs by"
            " --inputs FILE.npz",
        )


def _check_apart(listing: Listing) -> None:
    """Raises DeployError if a file is in two classes, or in the training and the test set.

    Links make that possible; the accuracy would be measured on training images.
    """
    places: dict[tuple[int, int], tuple[bool, int, Path]] = {}
    for tested, entries in ((False, listing.train), (True, listing.test or [])):
        for path, index in entries:
            try:
                status = path.stat()
            except OSError:  # a link without a target, which is refused when it is decoded
                status = path.lstat()
            first = places.setdefault((status.st_dev, status.st_ino), (tested, index, path))
            if first[:2] != (tested, index):
                raise DeployError(
                    f"{first[2]} and {path} are the same file",
                    "an image must be in one class, and either for training or for testing",
                )


def _is_text(name: str) -> bool:
    """Whether a file's name is valid in the system's encoding."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(folder: Path) -> Iterator[Path]:
    """Yields all files below a folder. Links to folders are followed, each folder only once."""
    visited = set()
    todo = [folder]
    while todo:
        place = todo.pop()
        status = place.stat()
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            path = Path(entry.path)
            if path.is_dir():
                if not ignored(path.name):
                    todo.append(path)
            else:
                yield path

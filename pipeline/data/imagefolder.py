"""Decoding a folder of images, with a subfolder for each class, into uint8 arrays."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import hardware
from engines.cache import slug
from engines.checks import import_vendor
from engines.errors import DeployError, UsageError
from pipeline.workflow import console
from pipeline.workflow.artifacts import FOLDER_PREFIX
from pipeline.workflow.digests import sha256_file

if TYPE_CHECKING:
    from engines.contract import Array

# The same as torchvision's ImageFolder.
_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_TEST_NAMES = ("test", "val")
# Without a test folder, one in this many images of each class is for testing.
_TEST_SHARE = 5
# Pillow's formats of these; it would hand PostScript to another program.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
_NAMED = 5  # how many faulty files an error names
_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")

Entry = tuple[Path, int]


@dataclass(frozen=True)
class Listing:
    """The images of a folder.

    Attributes:
        train: Path and class of each training image, in random order.
        test: Path and class of each test image, in random order.
        labels: The names of the classes, which are those of the subfolders, sorted.
    """

    folder: Path
    train: list[Entry]
    test: list[Entry]
    labels: tuple[str, ...]


def name_of(folder: Path) -> str:
    """Returns the data set's name for a folder of images."""
    return FOLDER_PREFIX + slug(folder.resolve().name)


def scan(folder: Path) -> Listing:
    """Lists a folder in the layout of torchvision's ImageFolder.

    Its subfolders are the classes, or it holds `train/` and `test/` (or `val/`) with the
    classes inside. Without a test folder, one image in five of each class is for testing.
    Images are shuffled with a fixed seed, so that the first N are a random sample.

    Raises:
        DeployError: The folder does not exist or has no classes, or a class has no images for
            training or testing.
    """
    if not folder.is_dir():
        raise DeployError(f"--data {folder} is not a folder", "give the folder of the images")
    split = next((folder / name for name in _TEST_NAMES if (folder / name).is_dir()), None)
    shuffle = random.Random(0)  # noqa: S311 - no secret
    if (folder / "train").is_dir() and split is not None:
        labels, train = _classes(folder / "train")
        test_labels, test = _classes(split)
        if test_labels != labels:
            odd = sorted(set(labels) ^ set(test_labels))
            raise DeployError(
                f"{folder}/train and {split} have different classes: {', '.join(odd[:_NAMED])}"
                f"{f' and {len(odd) - _NAMED} more' if len(odd) > _NAMED else ''}",
                "give both the same subfolders",
            )
    else:
        labels, every = _classes(folder)
        train, test = [], []
        for _, group in itertools.groupby(every, key=lambda entry: entry[1]):
            of_class = list(group)
            shuffle.shuffle(of_class)
            count = max(1, len(of_class) // _TEST_SHARE)
            test += of_class[:count]
            train += of_class[count:]
    for entries, what in ((train, "training"), (test, "testing")):
        shuffle.shuffle(entries)
        missing = sorted(set(range(len(labels))) - {index for _, index in entries})
        if missing:
            raise DeployError(
                f"{folder}: class {labels[missing[0]]!r} has no image left for {what}",
                "give every class at least two images",
            )
    return Listing(folder, train, test, tuple(labels))


def _classes(folder: Path) -> tuple[list[str], list[Entry]]:
    labels = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not labels:
        raise DeployError(
            f"{folder} has no subfolders", "put the images of each class in a folder of its own"
        )
    entries: list[Entry] = []
    for index, label in enumerate(labels):
        if not _is_text(label):
            raise DeployError(
                f"{folder}: the name of the class {os.fsencode(label)!r} is not UTF-8",
                "rename its folder",
            )
        folders = sorted(path for path in _files(folder / label) if _is_image(path.name))
        if not folders:
            raise DeployError(
                f"{folder / label} has no images ({', '.join(_EXTENSIONS)})",
                "remove the folder, or put images there",
            )
        entries += [(path, index) for path in folders]
    return labels, entries


def _is_text(name: str) -> bool:
    """Whether a file's name is valid in the system's encoding."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_image(name: str) -> bool:
    return name.lower().endswith(_EXTENSIONS)


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
                todo.append(path)
            else:
                yield path


def digest(folder: Path) -> str:
    """Returns a SHA-256 of the names and contents of all images."""
    listing = scan(folder)
    hasher = hashlib.sha256()
    for path, _ in sorted(listing.train + listing.test):
        content = sha256_file(path) if path.is_file() else "not a regular file"
        hasher.update(os.fsencode(path.relative_to(folder)) + f"\0{content}\0".encode())
    return hasher.hexdigest()


@dataclass(frozen=True)
class Decoded:
    """Images uint8 `[count, channels, height, width]` and classes int64 `[count]`."""

    images: Array
    labels: Array


def decode(listing: Listing, image_size: int | None, skip_bad: bool) -> tuple[Decoded, Decoded]:
    """Decodes the training and the test images.

    The result has one gray channel if all images are gray, else red, green and blue.

    Args:
        image_size: Shorter side in pixels that every image is resized to (bilinear, antialiased)
            before its middle square is cut out. None means that all images have the same size.
        skip_bad: Leave out broken files, and files that do not have the most common size.

    Raises:
        DeployError: Files are broken or of several sizes, or they would not fit in memory.
    """
    import_vendor("PIL", "pip install pillow")
    heads = _heads([path for path, _ in listing.train + listing.test])
    bad = {path: fault for path, (fault, _, _) in heads.items() if fault}
    sizes = Counter(size for fault, size, _ in heads.values() if not fault)
    if not sizes:
        raise DeployError(f"{listing.folder}: no image can be decoded: {_named(bad)}")
    ((size, _),) = sizes.most_common(1)
    if image_size is None:
        bad |= {
            path: f"{image_shape[0]}x{image_shape[1]} instead of {size[0]}x{size[1]}"
            for path, (fault, image_shape, _) in heads.items()
            if not fault and image_shape != size
        }
    else:
        size = (image_size, image_size)
    gray = all(mode in _GRAY for path, (_, _, mode) in heads.items() if path not in bad)
    shape = (1 if gray else 3, size[1], size[0])
    _check_memory(listing.folder, len(heads) - len(bad), shape)
    parts = []
    with console.bar("decode", len(heads)) as bar:
        for entries in (listing.train, listing.test):
            # A file with a valid header may still be broken.
            arrays = _decode_all([e for e in entries if e[0] not in bad], image_size, shape, bar)
            bad |= {
                path: image_shape
                for path, image_shape in arrays.items()
                if isinstance(image_shape, str)
            }
            parts.append((entries, arrays))
    if bad and not skip_bad:
        raise DeployError(
            f"{listing.folder}: {len(bad)} of {len(heads)} images cannot be used: {_named(bad)}",
            "repair them, or leave them out with --skip-bad"
            + (", or resize all images with --image-size" if len(sizes) > 1 else ""),
        )
    if bad:
        console.say(f"data: left out {len(bad)} of {len(heads)} images: {_named(bad)}")
    return _stacked(listing, parts[0], bad, shape), _stacked(listing, parts[1], bad, shape)


def _named(bad: dict[Path, str]) -> str:
    named = "; ".join(f"{path} ({fault})" for path, fault in list(bad.items())[:_NAMED])
    return named + (f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")


def _threads(work: Any, items: list[Any]) -> Iterable[Any]:
    # Threads suffice, since Pillow releases the interpreter lock while it decodes.
    with ThreadPoolExecutor(hardware.available_cpus()) as pool:
        yield from pool.map(work, items)


def _heads(paths: list[Path]) -> dict[Path, tuple[str, tuple[int, int], str]]:
    """Returns for each file its fault (or ""), its width and height, and its mode."""
    return dict(zip(paths, _threads(_head, paths), strict=True))


def _head(path: Path) -> tuple[str, tuple[int, int], str]:
    from PIL import Image

    try:
        if not path.is_file():
            return "not a regular file", (0, 0), ""
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode not in _GRAY + _COLOUR:
                return f"mode {image.mode}, not 8 bits a channel", (0, 0), image.mode
            return "", image.size, image.mode
    except Exception as error:  # a broken file raises nearly anything
        return _fault(error), (0, 0), ""


def _fault(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error)


def _decode_all(
    entries: list[Entry], image_size: int | None, shape: tuple[int, int, int], bar: console.Bar
) -> dict[Path, Array | str]:
    def work(entry: Entry) -> Array | str:
        try:
            return _pixels(entry[0], image_size, shape)
        except Exception as error:  # a broken file raises nearly anything
            return _fault(error)

    heads = {}
    for entry, array in zip(entries, _threads(work, entries), strict=True):
        heads[entry[0]] = array
        bar.advance(1)
    return heads


def _pixels(path: Path, image_size: int | None, shape: tuple[int, int, int]) -> Array:
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path, formats=_FORMATS) as opened:
        image = opened.convert("L" if shape[0] == 1 else "RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    array = np.asarray(image, np.uint8).reshape(shape[1], shape[2], shape[0])
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _stacked(
    listing: Listing,
    part: tuple[list[Entry], dict[Path, Array | str]],
    bad: dict[Path, str],
    shape: tuple[int, int, int],
) -> Decoded:
    import numpy as np

    entries, arrays = part
    kept = [entry for entry in entries if entry[0] not in bad]
    lost = sorted(set(range(len(listing.labels))) - {index for _, index in kept})
    if lost:
        raise DeployError(
            f"{listing.folder}: class {listing.labels[lost[0]]!r} has no usable image left",
            "repair its files",
        )
    images = np.empty((len(kept), *shape), np.uint8)
    for row, (path, _) in enumerate(kept):
        images[row] = arrays.pop(path)  # frees each image once it is copied
    return Decoded(images, np.array([index for _, index in kept], np.int64))


def _check_memory(folder: Path, count: int, shape: tuple[int, int, int]) -> None:
    # Twice, for the decoded images and the array that they are copied to.
    needed = 2 * count * shape[0] * shape[1] * shape[2]
    free = hardware.free_memory()
    if needed > free:
        raise UsageError(
            f"{folder}: {count:,} images of {shape[0]}x{shape[1]}x{shape[2]} need"
            f" {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free",
            "use a smaller --image-size, or fewer images",
        )

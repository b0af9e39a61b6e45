"""Decoding a folder of images, with a subfolder for each class, into uint8 arrays."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import hardware
from engines.cache import slug
from engines.checks import import_vendor
from engines.errors import DeployError, UsageError
from pipeline.data.folder_layout import Entry, Listing, scan
from pipeline.workflow import console
from pipeline.workflow.artifacts import FOLDER_PREFIX
from pipeline.workflow.digests import sha256_file

if TYPE_CHECKING:
    from engines.contract import Array

# Without a test folder, one in this many images of each class is for testing.
_TEST_SHARE = 5
# Pillow's formats of these; it would hand PostScript to another program.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
_NAMED = 5  # how many faulty files an error names
_GRAY = ("1", "L", "LA")
_COLOUR = ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
_CONVERTED = ("CMYK", "YCbCr", "HSV", "LAB")
_ORIENTATION = 0x0112  # EXIF's tag


def name_of(folder: Path) -> str:
    """Returns the data set's name for a folder of images.

    It ends with a digest of the path, since folders of different data sets may have the same name.
    """
    path = folder.resolve()
    return f"{FOLDER_PREFIX}{slug(path.name)}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:6]}"


def digest(folder: Path) -> str:
    """Returns a SHA-256 of the names and contents of all images."""
    listing = scan(folder)
    hasher = hashlib.sha256()
    for path, _ in sorted(listing.train + (listing.test or [])):
        content = sha256_file(path) if path.is_file() else "not a regular file"
        hasher.update(os.fsencode(path.relative_to(folder)) + f"\0{content}\0".encode())
    return hasher.hexdigest()


@dataclass(frozen=True)
class Decoded:
    """Images uint8 `[count, channels, height, width]` and classes int64 `[count]`."""

    images: Array
    labels: Array


@dataclass(frozen=True)
class _Head:
    """What an image's header says.

    Attributes:
        fault: Why the image cannot be used, or "".
        size: Width and height, upright.
        mode: Pillow's mode.
        change: What decoding does besides, such as dropping an alpha channel; or "".
    """

    fault: str
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    change: str = ""


def decode(listing: Listing, image_size: int | None, skip_bad: bool) -> tuple[Decoded, Decoded]:
    """Decodes the training and the test images.

    The result has one gray channel if all images are gray, else red, green and blue. Images are
    shuffled with a fixed seed, so that the first N are a random sample. If the folder is not split,
    one usable image in five of each class is for testing.

    Args:
        image_size: Shorter side in pixels that every image is resized to (bilinear, antialiased)
            before its middle square is cut out. None means that all images have the same size.
        skip_bad: Leave out broken files, and files that do not have the most common size.

    Raises:
        DeployError: Files are broken or of several sizes, a class has too few images, or they
            would not fit in memory.
    """
    import_vendor("PIL", "pip install pillow")
    entries = listing.train + (listing.test or [])
    paths = [path for path, _ in entries]
    heads = dict(zip(paths, _threads(_head, paths), strict=True))
    bad = {path: head.fault for path, head in heads.items() if head.fault}
    sizes = Counter(head.size for head in heads.values() if not head.fault)
    if not sizes:
        raise DeployError(f"{listing.folder}: no image can be decoded: {_named(bad)}")
    ((size, _),) = sizes.most_common(1)
    if image_size is None:
        bad |= {
            path: f"{head.size[0]}x{head.size[1]} instead of {size[0]}x{size[1]}"
            for path, head in heads.items()
            if not head.fault and head.size != size
        }
    else:
        size = (image_size, image_size)
    gray = all(head.mode in _GRAY for path, head in heads.items() if path not in bad)
    shape = (1 if gray else 3, size[1], size[0])
    _check_memory(listing.folder, len(heads) - len(bad), shape)
    with console.bar("decode", len(heads)) as bar:
        pixels = _decode_all([path for path in paths if path not in bad], image_size, shape, bar)
    # A file with a valid header may still be broken.
    bad |= {path: fault for path, fault in pixels.items() if isinstance(fault, str)}
    if bad and not skip_bad:
        raise DeployError(
            f"{listing.folder}: {len(bad)} of {len(heads)} images cannot be used: {_named(bad)}",
            "repair them, or leave them out with --skip-bad"
            + (", or resize all images with --image-size" if len(sizes) > 1 else ""),
        )
    if bad:
        console.say(f"data: left out {len(bad)} of {len(heads)} images: {_named(bad)}")
    changes = Counter(head.change for path, head in heads.items() if path not in bad)
    for change, count in sorted(changes.items()):
        if change:
            console.say(f"data: {count:,} of {len(heads):,} images {change}")
    train, test = _split(listing, bad)
    return _stacked(train, pixels, shape), _stacked(test, pixels, shape)


def _split(listing: Listing, bad: dict[Path, str]) -> tuple[list[Entry], list[Entry]]:
    """Returns the usable training and test images, each in random order.

    Raises:
        DeployError: A class has no image for one of them.
    """
    shuffle = random.Random(0)  # noqa: S311 - no secret
    train = [entry for entry in listing.train if entry[0] not in bad]
    test = [entry for entry in listing.test or () if entry[0] not in bad]
    if listing.test is None:
        every, train = train, []
        for _, group in itertools.groupby(every, key=lambda entry: entry[1]):
            of_class = list(group)
            shuffle.shuffle(of_class)
            count = max(1, len(of_class) // _TEST_SHARE)
            test += of_class[:count]
            train += of_class[count:]
    for part, what in ((train, "training"), (test, "testing")):
        shuffle.shuffle(part)
        missing = sorted(set(range(len(listing.labels))) - {index for _, index in part})
        if missing:
            raise DeployError(
                f"{listing.folder}: class {listing.labels[missing[0]]!r} has no usable image for"
                f" {what}",
                "give every class at least two images"
                if listing.test is None
                else "add one, or repair its files",
            )
    return train, test


def _named(bad: dict[Path, str]) -> str:
    named = "; ".join(f"{path} ({fault})" for path, fault in list(bad.items())[:_NAMED])
    return named + (f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else "")


def _threads(work: Any, items: list[Any]) -> Iterable[Any]:
    # Threads suffice, since Pillow releases the interpreter lock while it decodes.
    with ThreadPoolExecutor(hardware.available_cpus()) as pool:
        yield from pool.map(work, items)


def _head(path: Path) -> _Head:
    from PIL import Image

    try:
        if not path.is_file():
            return _Head("not a regular file")
        with Image.open(path, formats=_FORMATS) as image:
            if image.mode not in _GRAY + _COLOUR:
                return _Head(f"mode {image.mode}, not 8 bits a channel")
            turned = image.getexif().get(_ORIENTATION, 1)
            change = ""
            if getattr(image, "n_frames", 1) > 1:
                change = "have several frames, of which the first is used"
            elif image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
                change = "are transparent, which is ignored"
            elif image.mode in _CONVERTED:
                change = f"are {image.mode} and become RGB"
            elif turned in range(2, 9):
                change = "are turned upright, as their EXIF data says"
            # 5 to 8 swap the axes.
            width, height = image.size[::-1] if turned in range(5, 9) else image.size
            return _Head("", (width, height), image.mode, change)
    except Exception as error:  # a broken file raises nearly anything
        return _Head(_fault(error))


def _fault(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    return "not an image" if isinstance(error, UnidentifiedImageError) else str(error)


def _decode_all(
    paths: list[Path], image_size: int | None, shape: tuple[int, int, int], bar: console.Bar
) -> dict[Path, Array | str]:
    """Returns the pixels of each image, or what is wrong with it."""

    def work(path: Path) -> Array | str:
        try:
            return _pixels(path, image_size, shape)
        except Exception as error:  # a broken file raises nearly anything
            return _fault(error)

    pixels = {}
    for path, array in zip(paths, _threads(work, paths), strict=True):
        pixels[path] = array
        bar.advance(1)
    return pixels


def _pixels(path: Path, image_size: int | None, shape: tuple[int, int, int]) -> Array:
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path, formats=_FORMATS) as opened:
        image = ImageOps.exif_transpose(opened).convert("L" if shape[0] == 1 else "RGB")
    if image_size is not None:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    array = np.asarray(image, np.uint8).reshape(shape[1], shape[2], shape[0])
    return np.ascontiguousarray(array.transpose(2, 0, 1))


def _stacked(
    entries: list[Entry], pixels: dict[Path, Array | str], shape: tuple[int, int, int]
) -> Decoded:
    import numpy as np

    images = np.empty((len(entries), *shape), np.uint8)
    for row, (path, _) in enumerate(entries):
        images[row] = pixels.pop(path)  # frees each image once it is copied
    return Decoded(images, np.array([index for _, index in entries], np.int64))


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

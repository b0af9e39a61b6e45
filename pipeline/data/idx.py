"""The IDX format, in which the data stage stores images and labels: a header, then the values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.errors import DeployError

if TYPE_CHECKING:
    from engines.contract import Array

# The element types we write, by the format's own codes. Numbers are big-endian.
_TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}
_IMAGE_AXES = (3, 4)


def read_images(path: Path) -> Array:
    """Reads images as uint8 `[count, channels, height, width]`.

    Raises:
        DeployError: The file is not an IDX file of bytes with three or four axes.
    """
    array = _read(path)
    if array.ndim not in _IMAGE_AXES or array.dtype != np.uint8:
        raise DeployError(f"{path} holds {array.dtype}{list(array.shape)}, not images of bytes")
    if array.ndim == min(_IMAGE_AXES):
        array = array[:, None]
    return array


def read_labels(path: Path) -> Array:
    """Reads labels as int64 `[count]`.

    Raises:
        DeployError: The file is not an IDX file with one axis.
    """
    array = _read(path)
    if array.ndim != 1:
        raise DeployError(f"{path} has {array.ndim} axes, but labels have one")
    return array.astype(np.int64)


def _read(path: Path) -> Array:
    with path.open("rb") as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _TYPES:  # noqa: PLR2004
            raise DeployError(f"{path} is not an IDX file of bytes or integers")
        dtype, axes = _TYPES[head[2]], head[3]
        shape = tuple(np.frombuffer(file.read(4 * axes), dtype=">u4").tolist())
        values: Array = np.fromfile(file, dtype)
    if len(shape) != axes or len(values) != int(np.prod(shape, dtype=np.int64)):
        raise DeployError(
            f"{path} is truncated: its shape is {shape}, but it has {len(values)} elements"
        )
    return values.reshape(shape)


def write(path: Path, array: Array) -> None:
    """Writes an array of any shape, uint8 or integers that fit 32 bits, to an IDX file."""
    code = 0x08 if array.dtype == np.uint8 else 0x0C
    with path.open("wb") as file:
        file.write(bytes((0, 0, code, array.ndim)))
        file.write(np.array(array.shape, ">u4").tobytes())
        array.astype(_TYPES[code], copy=False).tofile(file)

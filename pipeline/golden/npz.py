"""Reads .npz archives within bounds: nothing is decompressed before its size is known to be right.

numpy.load alone would let a small file take any amount of memory.
"""

from __future__ import annotations

import lzma
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from engines import hardware
from engines.contract import Array
from pipeline.workflow.digests import require_file

# What a small file may take in memory, and how many times its size a larger one may.
_FREE_BYTES = 256 << 20
_MAX_RATIO = 100
_SUFFIX = ".npy"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_CHUNK = 1 << 20
# What zipfile, zlib and numpy raise for damaged files.
_READ_ERRORS = (
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    OSError,
    EOFError,
    RecursionError,
    OverflowError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    NotImplementedError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


def read(path: Path) -> dict[str, Array]:
    """Returns the arrays of an archive, by name.

    Raises:
        DeployError: The file does not exist, or is not a regular file.
        ValueError: It is damaged or is not an archive of numbers, or its arrays would take far
            more memory than its size explains, or more than this machine has.
    """
    require_file(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            _check(infos, path.stat().st_size)
            return {info.filename.removesuffix(_SUFFIX): _array(archive, info) for info in infos}
    except _READ_ERRORS as error:
        if isinstance(error, zipfile.BadZipFile) and "not a zip file" in str(error):
            raise ValueError("it is not an .npz archive of numbers") from error
        raise ValueError(str(error) or type(error).__name__) from error


def compressible(path: Path) -> bool:
    """Whether `read` accepts an archive that was just written compressed."""
    with zipfile.ZipFile(path) as archive:
        return _total(archive.infolist()) <= _allowed(path.stat().st_size)


def _total(infos: list[zipfile.ZipInfo]) -> int:
    return sum(info.file_size for info in infos)


def _allowed(file_bytes: int) -> int:
    return max(_FREE_BYTES, _MAX_RATIO * file_bytes)


def _check(infos: list[zipfile.ZipInfo], file_bytes: int) -> None:
    """Raises ValueError unless all members can be read within bounds."""
    names = set()
    for info in infos:
        name = info.filename
        if not name.endswith(_SUFFIX) or name in names:
            raise ValueError(f"it holds {name[:80]!r}, which is not an array, or holds it twice")
        if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
            raise ValueError(f"{name[:80]!r} is encrypted, or compressed by another method")
        name.encode()
        names.add(name)
    total, allowed, free = _total(infos), _allowed(file_bytes), hardware.free_memory()
    if total > allowed:
        raise ValueError(
            f"its {file_bytes:,} bytes unpack to {total:,}, more than {allowed:,}; write it"
            " with numpy.savez, uncompressed"
        )
    if total > free:
        raise ValueError(f"its arrays take {total:,} bytes, and {free:,} bytes of memory are free")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Array:
    with archive.open(info) as member:
        shape, fortran, dtype = _header(member)
        if dtype.hasobject or dtype.kind not in "biufcSUV":
            raise ValueError(f"{info.filename!r} is {dtype}, not numbers")
        count = math.prod(shape)
        if any(size < 0 for size in shape) or member.tell() + count * dtype.itemsize != (
            info.file_size
        ):
            raise ValueError(f"{info.filename!r} has another size than its shape {shape} says")
        content = np.empty(count * dtype.itemsize, np.uint8)
        start = 0
        # To the end of the member, where zipfile checks its checksum.
        while chunk := member.read(_CHUNK):
            content[start : start + len(chunk)] = np.frombuffer(chunk, np.uint8)
            start += len(chunk)
        if start != len(content):
            raise ValueError(f"{info.filename!r} ends too early")
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")


def _header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(member)
    raise ValueError(f"an array is of version {version}")

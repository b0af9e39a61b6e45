"""Reads a tar.gz as a stream, and accepts only what `archive.write` writes.

tarfile is not used: a header may make it read gigabytes into memory, or work for minutes.
"""

from __future__ import annotations

import io
import re
import zlib
from typing import BinaryIO

from engines.errors import DeployError

_BLOCK = 512
# tarfile ends an archive with two blocks of zeros, and more up to a multiple of this.
_RECORD = 10240
_CHUNK = 1 << 18
_MAGIC = b"ustar\x0000"
_REGULAR, _EXTENDED = b"0", b"x"
# An extended header has a path that is longer than 100 characters or not ASCII, and a size from
# 8 GiB on.
_MAX_EXTENDED = 8 << 10
_KEYS = ("path", "size")
_MAX_DIGITS = 15


class ArchiveError(ValueError):
    """An archive that is damaged, or has a part that `archive.write` does not write."""


class _Inflated(io.RawIOBase):
    """The content of a gzip file that has exactly one member."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._inflate = zlib.decompressobj(wbits=31)  # gzip's header and checksum

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._file.read(_CHUNK)
            try:
                content = self._inflate.decompress(packed, len(buffer))
            except zlib.error as error:
                raise ArchiveError(str(error)) from error
            if content:
                buffer[: len(content)] = content
                return len(content)
            if not packed and not self._inflate.eof:
                raise ArchiveError("it ends too early")
        if self._inflate.unused_data or self._file.read(1):
            raise ArchiveError("more data follows its end")
        return 0


class TarStream:
    """The members of an archive, in order: call `next`, then `read` until it returns nothing."""

    def __init__(self, file: BinaryIO) -> None:
        self._content = io.BufferedReader(_Inflated(file), _CHUNK)
        self._left = self._padding = 0

    def next(self) -> tuple[str, int] | None:
        """Returns the name and size of the next member; None at the end of the archive.

        Raises:
            ArchiveError: The archive is damaged or is not one of ours.
            DeployError: A member is not a regular file.
        """
        while self.read(_CHUNK):
            pass
        header = self._exactly(_BLOCK)
        if not any(header):
            self._check_end()
            return None
        kind, name, size = _parse(header)
        if kind == _EXTENDED:
            if size > _MAX_EXTENDED:
                raise ArchiveError(f"an extended header has {size:,} bytes")
            body = self._exactly(size)
            self._skip_padding(-size % _BLOCK)
            kind, name, size = _parse(self._exactly(_BLOCK))
            extended = _parse_extended(body)
            name = extended.get("path", name)
            size = _whole(extended["size"], 10) if "size" in extended else size
        if kind != _REGULAR:
            raise DeployError(f"member {name!r} is not a regular file")
        self._left, self._padding = size, -size % _BLOCK
        return name, size

    def read(self, limit: int) -> bytes:
        """Returns up to `limit` bytes of the current member; nothing at its end."""
        content = self._exactly(min(limit, self._left))
        self._left -= len(content)
        if not self._left:
            self._skip_padding(self._padding)
            self._padding = 0
        return content

    def _exactly(self, size: int) -> bytes:
        content = self._content.read(size)
        if len(content) != size:
            raise ArchiveError("it ends too early")
        return content

    def _skip_padding(self, size: int) -> None:
        if any(self._exactly(size)):
            raise ArchiveError("data follows a member's end")

    def _check_end(self) -> None:
        """Raises ArchiveError unless only the zeros follow that end an archive."""
        rest = self._content.read(_BLOCK + _RECORD)
        if any(rest) or not _BLOCK <= len(rest) < _BLOCK + _RECORD or self._content.read(1):
            raise ArchiveError("more data follows its last member")


def _parse(header: bytes) -> tuple[bytes, str, int]:
    """Returns the type, name and size in a header."""
    total = sum(header[:148]) + sum(b" " * 8) + sum(header[156:])
    if _whole(_text(header[148:156]), 8) != total:
        raise ArchiveError("a header's checksum is wrong")
    if header[257:265] != _MAGIC:
        raise ArchiveError("a header is not of the POSIX format")
    name, prefix = _text(header[:100]), _text(header[345:500])
    size = _whole(_text(header[124:136]), 8)
    return header[156:157], f"{prefix}/{name}" if prefix else name, size


def _text(field: bytes) -> str:
    return _decode(field.partition(b"\0")[0])


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ArchiveError(f"a name is not UTF-8: {content[:40]!r}") from error


def _whole(text: str, base: int) -> int:
    if not re.fullmatch(r"[0-7]+ ?" if base == 8 else r"[0-9]+", text) or len(text) > _MAX_DIGITS:  # noqa: PLR2004
        raise ArchiveError(f"{text[:40]!r} is not a size")
    return int(text, base)


def _parse_extended(body: bytes) -> dict[str, str]:
    """Returns the records of an extended header, each a length, a key and a value."""
    records: dict[str, str] = {}
    start = 0
    while start < len(body):
        end = start + _whole(_decode(body[start : start + 6].partition(b" ")[0]), 10)
        key, _, value = body[start:end].partition(b" ")[2].partition(b"=")
        name = _decode(key)
        if end > len(body) or not value.endswith(b"\n") or name not in _KEYS or name in records:
            raise ArchiveError(f"an extended header has {name[:40]!r}")
        records[name] = _decode(value[:-1])
        start = end
    return records

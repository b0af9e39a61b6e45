"""Reads a tar.zst as a stream, and accepts only what `archive.write` writes.

tarfile is not used: a header may make it read gigabytes into memory, or work for minutes.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from typing import Protocol

from engines.errors import DeployError
from pipeline.bundling import compression

_BLOCK = 512
# tarfile ends an archive with two blocks of zeros, and more up to a multiple of this.
_RECORD = 10240
_CHUNK = 1 << 18
_MAGIC = b"ustar\x0000"
_REGULAR, _LINK, _EXTENDED = b"0", b"1", b"x"
# An extended header has a path or link that is longer than 100 characters or not ASCII, and a size
# from 8 GiB on.
_MAX_EXTENDED = 8 << 10
_KEYS = ("path", "linkpath", "size")
_MAX_DIGITS = 15


class Readable(Protocol):
    """A file that is read from its start to its end."""

    def read(self, size: int = -1, /) -> bytes: ...


class ArchiveError(ValueError):
    """An archive that is damaged, or has a part that `archive.write` does not write."""


@dataclass(frozen=True)
class Member:
    """A member of an archive.

    Attributes:
        name: Its path, with the top folder.
        size: Bytes of its content.
        link: The path of the earlier member that has its content; "" if it has its own.
    """

    name: str
    size: int
    link: str = ""


class _Inflated(io.RawIOBase):
    """The content of a Zstandard file that has exactly one frame."""

    def __init__(self, file: Readable) -> None:
        self._file = file
        self._inflate = compression.decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._inflate.eof:
            packed = self._file.read(_CHUNK) if self._inflate.needs_input else b""
            if self._inflate.needs_input and not packed:
                raise ArchiveError("it ends too early")
            try:
                content = self._inflate.decompress(packed, len(buffer))
            except compression.Error as error:
                raise ArchiveError(str(error)) from error
            if content:
                buffer[: len(content)] = content
                return len(content)
        if self._inflate.unused_data or self._file.read(1):
            raise ArchiveError("more data follows its end")
        return 0


def uncompressed_digest(file: Readable) -> str:
    """Returns the SHA-256 of what a Zstandard file with one frame holds.

    Raises:
        ArchiveError: It is damaged.
    """
    content, digest = io.BufferedReader(_Inflated(file), _CHUNK), hashlib.sha256()
    while chunk := content.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


class TarStream:
    """The members of an archive, in order: call `next`, then `read` until it returns nothing."""

    def __init__(self, file: Readable) -> None:
        self._content = io.BufferedReader(_Inflated(file), _CHUNK)
        self._left = self._padding = 0

    def next(self) -> Member | None:
        """Returns the next member; None at the end of the archive.

        Raises:
            ArchiveError: The archive is damaged or is not one of ours.
            DeployError: A member is neither a regular file nor a link to an earlier member.
        """
        while self.read(_CHUNK):
            pass
        header = self._exactly(_BLOCK)
        if not any(header):
            self._check_end()
            return None
        kind, member = _parse(header)
        if kind == _EXTENDED:
            if member.size > _MAX_EXTENDED:
                raise ArchiveError(f"an extended header has {member.size:,} bytes")
            body = self._exactly(member.size)
            self._skip_padding(-member.size % _BLOCK)
            kind, member = _parse(self._exactly(_BLOCK))
            extended = _parse_extended(body)
            member = Member(
                extended.get("path", member.name),
                _whole(extended["size"], 10) if "size" in extended else member.size,
                extended.get("linkpath", member.link),
            )
        if kind not in (_REGULAR, _LINK):
            raise DeployError(f"member {member.name!r} is not a regular file")
        if (kind == _LINK) != bool(member.link) or (member.link and member.size):
            raise ArchiveError(f"member {member.name!r} is neither a file nor a link")
        self._left, self._padding = member.size, -member.size % _BLOCK
        return member

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


def _parse(header: bytes) -> tuple[bytes, Member]:
    """Returns the type and the member in a header."""
    total = sum(header[:148]) + sum(b" " * 8) + sum(header[156:])
    if _whole(_text(header[148:156]), 8) != total:
        raise ArchiveError("a header's checksum is wrong")
    if header[257:265] != _MAGIC:
        raise ArchiveError("a header is not of the POSIX format")
    name, prefix = _text(header[:100]), _text(header[345:500])
    size = _whole(_text(header[124:136]), 8)
    name = f"{prefix}/{name}" if prefix else name
    return header[156:157], Member(name, size, _text(header[157:257]))


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

"""The archive's format: a reproducible tar.zst whose first member lists all the others.

It has one top folder with `manifest.json`, `manifest.sha256`, then every member that the manifest
lists, sorted by name, at its path below the artifact root. Members with equal content are hard
links to the first of them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from engines.errors import DeployError
from engines.temporary import TMPDIR_HINT
from pipeline.bundling import compression
from pipeline.bundling.tar_stream import (
    ArchiveError,
    Member,
    Readable,
    TarStream,
    uncompressed_digest,
)
from pipeline.workflow import phases
from pipeline.workflow.artifacts import GRAPH_DATA
from pipeline.workflow.digests import dump_json, parse_json, require_file, sha256_file

SCHEMA = 3
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
# Bytes that the members of a bundle may take together, unless the user says otherwise.
MAX_BYTES = 64 << 30
_MAX_MANIFEST = 16 << 20
_MAX_MEMBERS = 10_000
# What file systems commonly allow for a name, and a bound for a path.
_MAX_PART, _MAX_NAME = 255, 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 20
# What to do about a path that is not that of a bundle.
NO_BUNDLE = "give the path of a file that `assay bundle` wrote"
_HINT = "copy the bundle again from where it was made; a damaged one cannot be repaired"


def write(
    target: Path,
    folder: str,
    facts: Mapping[str, Any],
    members: Mapping[str, Path | bytes],
    known: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Writes a bundle. Equal members and facts give equal bytes, with the same libzstd.

    Args:
        target: The archive to write.
        folder: Name of the archive's top folder.
        facts: Content of the manifest, besides the list of members.
        members: The content of each member, or a file with it, by the member's path.
        known: SHA-256 of members that have been hashed already, by path.

    Raises:
        DeployError: A file changes while it is read.
    """
    contents = dict(sorted(members.items()))
    listed: dict[str, dict[str, Any]] = {
        name: {"sha256": known.get(name) or _sha256(source), "bytes": _size(source)}
        for name, source in contents.items()
    }
    manifest = dump_json({**facts, "schema": SCHEMA, "members": listed})
    digest = f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()
    first: dict[str, str] = {}  # the first member with a content, by digest
    with (
        target.open("wb") as raw,
        compression.compressed(raw) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, source in {MANIFEST: manifest, MANIFEST_DIGEST: digest, **contents}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.mode = 0o644
            same = first.setdefault(listed[name]["sha256"], name) if name in listed else name
            if same != name:
                info.type, info.linkname = tarfile.LNKTYPE, f"{folder}/{same}"
                archive.addfile(info)
                continue
            info.size = _size(source)
            phases.start(f"packing {name}", info.size)
            with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
                read = _Hashed(file, phases.advance)
                archive.addfile(info, read)
            if name in listed and read.digest.hexdigest() != listed[name]["sha256"]:
                raise DeployError(f"{source!s} changed while it was read", "run the command again")


def digests(members: Mapping[str, Path | bytes]) -> dict[str, str]:
    """Returns the SHA-256 of each member, by its path."""
    return {name: _sha256(source) for name, source in members.items()}


def _sha256(source: Path | bytes) -> str:
    return hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else sha256_file(source)


def _size(source: Path | bytes) -> int:
    return len(source) if isinstance(source, bytes) else source.stat().st_size


def require_start(bundle: Path) -> None:
    """Raises DeployError unless a path is a file that begins as a bundle does; parses nothing."""
    require_file(bundle, NO_BUNDLE)
    try:
        with _opened(bundle):
            pass
    except OSError as error:
        raise DeployError(
            f"{bundle} cannot be read: {error.strerror or error}", "check its permissions"
        ) from error


@contextmanager
def _opened(bundle: Path) -> Iterator[BinaryIO]:
    """Opens a bundle; raises DeployError if it does not begin as one does."""
    with bundle.open("rb") as file:
        if file.read(len(compression.MAGIC)) != compression.MAGIC:
            raise DeployError(
                f"{bundle} is not a bundle: it is not compressed by Zstandard", NO_BUNDLE
            )
        file.seek(0)
        yield file


def extract(
    bundle: Path, target: Path, limit: int = MAX_BYTES, sha256: str | None = None
) -> dict[str, Any]:
    """Unpacks a bundle into a new or empty folder, checks every digest, and returns the manifest.

    Writes only regular files that the manifest lists, each once and as long as listed: a hostile
    archive can neither write outside the folder nor fill the disk or the memory.

    Args:
        limit: Bytes that all members together may take.
        sha256: Digest that the archive must have, of a signature that was verified.

    Raises:
        DeployError: The file is not a bundle, or a member is damaged, missing, duplicated or not
            in the manifest; the message names the member. Or the members take more than `limit`,
            or more than the disk has.
    """
    try:
        with _opened(bundle) as file:
            hashed = _Hashed(file)
            manifest = _Reader(bundle, hashed, limit).extract(target)
    except OSError as error:  # those of writing are caught where they occur
        raise DeployError(f"{bundle} cannot be read: {error}", _HINT) from error
    if sha256 not in (None, hashed.digest.hexdigest()):
        raise DeployError(f"{bundle} was replaced while it was checked", "check it again")
    return manifest


def describe(bundle: Path) -> tuple[dict[str, Any], str]:
    """Returns the manifest, and the SHA-256 of the archive as it is without compression.

    Raises:
        DeployError: The file is not a bundle, or cannot be read to its end.
    """
    try:
        with _opened(bundle) as file:
            manifest = _Reader(bundle, file, MAX_BYTES).read_manifest()
        with bundle.open("rb") as file:
            return manifest, uncompressed_digest(file)
    except (OSError, ArchiveError) as error:
        raise DeployError(f"{bundle} cannot be read: {error}", _HINT) from error


class _Hashed:
    """A file that is hashed as it is read; `advance` is told how many bytes were."""

    def __init__(self, file: BinaryIO, advance: Callable[[int], None] = lambda _: None) -> None:
        self._file, self._advance, self.digest = file, advance, hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        content = self._file.read(size)
        self.digest.update(content)
        self._advance(len(content))
        return content


class _Reader:
    """A bundle that is being read.

    Attributes:
        last: The last member that was read, for the message if the next one cannot be.
    """

    def __init__(self, bundle: Path, file: Readable, limit: int) -> None:
        self._bundle, self._limit = bundle, limit
        self._tar = TarStream(file)
        self._folder: str | None = None  # the top folder
        self.last = "its start"

    def extract(self, target: Path) -> dict[str, Any]:
        manifest = self.read_manifest()
        missing = dict(manifest["members"])
        self._check_size(sum(entry["bytes"] for entry in missing.values()), target)
        while member := self._next():
            name = member.name
            entry = missing.pop(name, None)
            if entry is None:
                twice = name in manifest["members"]
                raise self._error(
                    f"member {name} " + ("occurs twice" if twice else "is not in the manifest")
                )
            if not member.link:
                self._copy(member, entry, target)
            elif member.link in (name, *missing) or manifest["members"].get(member.link) != entry:
                raise self._error(
                    f"member {name} links to {member.link!r}, which is not its content"
                )
            else:
                self._link(member, target)
        if missing:
            raise self._error(f"member {min(missing)} is missing")
        return manifest

    def _error(self, problem: str) -> DeployError:
        return DeployError(f"{self._bundle}: {problem}", _HINT)

    def _next(self) -> Member | None:
        """Returns the next member, with paths below the top folder."""
        try:
            member = self._tar.next()
        except ArchiveError as error:
            raise DeployError(
                f"{self._bundle} is damaged after {self.last}: {error}", _HINT
            ) from error
        except DeployError as error:
            raise self._error(error.message) from error
        if member is None:
            return None
        folder, _, name = member.name.partition("/")
        if not name:
            raise self._error(f"member {member.name!r} is not below a folder")
        if self._folder is None and _safe(folder):
            self._folder = folder
        # Other readers, such as tar, would find something else there.
        if folder != self._folder:
            raise self._error(f"member {member.name!r} is not in the top folder")
        self.last = f"member {name}"
        if not member.link:
            return Member(name, member.size)
        folder, _, link = member.link.partition("/")
        if folder != self._folder or not link:
            raise self._error(f"member {name} links to {member.link!r}, outside the top folder")
        return Member(name, member.size, link)

    def _read(self, name: str) -> bytes:
        try:
            return self._tar.read(_CHUNK)
        except ArchiveError as error:
            raise self._error(f"member {name} is damaged: {error}") from error

    def read_manifest(self) -> dict[str, Any]:
        """Reads the first two members, and returns the manifest that they hold."""
        contents = []
        for wanted, limit in ((MANIFEST, _MAX_MANIFEST), (MANIFEST_DIGEST, _CHUNK)):
            member = self._next() or Member("nothing", 0)
            if member.name != wanted:
                raise DeployError(
                    f"{self._bundle} is not a bundle: {member.name} in place of {wanted}", _HINT
                )
            if member.size > limit:
                raise self._error(f"member {wanted} is larger than {limit:,} bytes")
            contents.append(b"".join(iter(lambda name=wanted: self._read(name), b"")))  # type: ignore[misc]
        manifest, digest = contents
        manifest_digest = hashlib.sha256(manifest).hexdigest()
        expected = digest.decode("ascii", "replace").split(" ")[0]
        if manifest_digest != expected:
            raise self._error(
                f"member {MANIFEST} is damaged: {MANIFEST_DIGEST} has sha256 {expected[:64]},"
                f" found {manifest_digest}"
            )
        try:
            content = parse_json(manifest)
            _check_manifest(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._error(f"member {MANIFEST} is not valid: {error}") from error
        return dict(content)

    def _check_size(self, needed: int, target: Path) -> None:
        if needed > self._limit:
            raise DeployError(
                f"{self._bundle} unpacks to {needed:,} bytes, more than the {self._limit:,} that"
                " are allowed",
                "if you trust its source, allow more with --max-size GIB",
            )
        target.mkdir(parents=True, exist_ok=True)
        if needed > shutil.disk_usage(target).free:
            raise self._disk_full(target)

    def _disk_full(self, target: Path) -> DeployError:
        return DeployError(
            f"the disk of {target.parent} is full: {self._bundle} cannot be unpacked there",
            TMPDIR_HINT,
        )

    def _copy(self, member: Member, entry: dict[str, Any], target: Path) -> None:
        name, size = member.name, member.size
        expected = f"expected {entry['bytes']:,} bytes with sha256 {entry['sha256']}"
        if size != entry["bytes"]:
            raise self._error(f"member {name} is damaged: {expected}, found {size:,} bytes")
        digest, path = hashlib.sha256(), target / name
        with self._writing(name, target):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as out:
                while chunk := self._read(name):
                    digest.update(chunk)
                    out.write(chunk)
        if digest.hexdigest() != entry["sha256"]:
            raise self._error(f"member {name} is damaged: {expected}, found {digest.hexdigest()}")

    def _link(self, member: Member, target: Path) -> None:
        path, source = target / member.name, target / member.link
        with self._writing(member.name, target):
            path.parent.mkdir(parents=True, exist_ok=True)
            if GRAPH_DATA.name in (path.name, source.name):  # refused if it has a second name
                shutil.copyfile(source, path)
                return
            try:
                os.link(source, path)
            except OSError:  # not every file system has links
                shutil.copyfile(source, path)

    @contextmanager
    def _writing(self, name: str, target: Path) -> Iterator[None]:
        """Raises DeployError for an error of writing a member."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full(target) from error
            raise DeployError(
                f"{self._bundle}: member {name} cannot be written below {target.parent}:"
                f" {error.strerror or error}",
                "set TMPDIR to a folder where files of any name can be written",
            ) from error


def _check_manifest(content: Any) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError if the members are not valid."""
    if content["schema"] != SCHEMA:
        raise ValueError(f"schema {content['schema']!r:.40}, this version reads {SCHEMA}")
    members, names = content["members"], set()
    if len(members) > _MAX_MEMBERS:
        raise ValueError(f"{len(members):,} members, more than {_MAX_MEMBERS:,}")
    for name, entry in members.items():
        size, digest = entry["bytes"], entry["sha256"]
        if name.partition("/")[0] in (MANIFEST, MANIFEST_DIGEST):
            raise ValueError(f"bad member {name[:80]!r}: it would replace the manifest")
        if not (_safe(name) and type(size) is int and size >= 0 and _SHA256.fullmatch(digest)):
            raise ValueError(f"bad member {name[:80]!r}")
        if _folded(name) in names:
            raise ValueError(
                f"bad member {name[:80]!r}: some file systems know another by its name"
            )
        names.add(_folded(name))
    for name in names:
        folder = name.rpartition("/")[0]
        while folder:
            if folder in names:
                raise ValueError(f"bad member {folder[:80]!r}: it is also a folder")
            folder = folder.rpartition("/")[0]


def _folded(name: str) -> str:
    """Returns what a file system that ignores case and Unicode's forms takes a name for."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    return "/".join(part.rstrip(". ") for part in folded.split("/"))


def _safe(name: str) -> bool:
    """Whether a member's path is relative, plain and valid on any file system."""
    parts = name.split("/")
    return (
        len(name.encode()) <= _MAX_NAME
        and name.isprintable()
        and not {"\\", ":"} & {*name}
        and all(part not in ("", ".", "..") and len(part.encode()) <= _MAX_PART for part in parts)
    )

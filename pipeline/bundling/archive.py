"""The archive's format: a reproducible tar.gz whose first member lists all the others.

It has one top folder with `manifest.json`, `manifest.sha256`, then every member that the manifest
lists, sorted by name, at its path below the artifact root.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from engines.errors import DeployError
from pipeline.workflow.digests import dump_json

SCHEMA = 1
MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.sha256"
_MAX_MANIFEST = 16 << 20
_CHUNK = 1 << 20
_HINT = "copy the bundle again from where it was made; a damaged one cannot be repaired"
_READ_ERRORS = (tarfile.TarError, OSError, EOFError, zlib.error)


def write(
    target: Path, folder: str, facts: Mapping[str, Any], members: Mapping[str, Path | bytes]
) -> None:
    """Writes a bundle. Equal members and facts give equal bytes, with the same zlib.

    Args:
        target: The archive to write.
        folder: Name of the archive's top folder.
        facts: Content of the manifest, besides the list of members.
        members: The content of each member, or a file with it, by the member's path.
    """
    contents = {name: _read(source) for name, source in sorted(members.items())}
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in contents.items()
    }
    manifest = dump_json({**facts, "schema": SCHEMA, "members": listed})
    digest = f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()
    with (
        target.open("wb") as raw,
        # No name and no time in the header, so that equal contents give equal bytes.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, content in {MANIFEST: manifest, MANIFEST_DIGEST: digest, **contents}.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(content))


def _read(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def extract(bundle: Path, target: Path) -> dict[str, Any]:
    """Unpacks a bundle into an empty folder, checks every digest, and returns the manifest.

    Writes only regular files that the manifest lists, each once and no longer than listed: a
    hostile archive can neither write outside the folder nor fill the disk.

    Raises:
        DeployError: The file is not a bundle, or a member is damaged, missing, duplicated or not
            in the manifest; the message names the member.
    """
    try:
        with bundle.open("rb") as raw, gzip.GzipFile(fileobj=raw) as packed:
            with tarfile.open(fileobj=packed, mode="r|") as archive:
                manifest = _extract(bundle, archive, target)
            # gzip checks its checksum only at the end of the data.
            while packed.read(_CHUNK):
                pass
    except _READ_ERRORS as error:
        raise DeployError(f"{bundle} cannot be read: {error}", _HINT) from error
    return manifest


def _extract(bundle: Path, archive: tarfile.TarFile, target: Path) -> dict[str, Any]:
    files = _files(bundle, archive)
    manifest = _read_manifest(bundle, files)
    missing = dict(manifest["members"])
    for name, file in files:
        entry = missing.pop(name, None)
        if entry is None:
            twice = name in manifest["members"]
            problem = "occurs twice" if twice else "is not in the manifest"
            raise DeployError(f"{bundle}: member {name} {problem}", _HINT)
        _copy(bundle, name, file, target / name, entry)
    if missing:
        raise DeployError(f"{bundle}: member {min(missing)} is missing", _HINT)
    return manifest


def _files(bundle: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields each member's path below the top folder, and its content."""
    last = "the start"
    members = iter(archive)
    while True:
        try:
            info = next(members, None)
        except _READ_ERRORS as error:
            raise DeployError(f"{bundle} is damaged after {last}: {error}", _HINT) from error
        if info is None:
            return
        _, _, name = info.name.partition("/")
        file = archive.extractfile(info) if info.isreg() else None
        if file is None or not name:
            raise DeployError(f"{bundle}: member {info.name!r} is not a regular file", _HINT)
        yield name, file
        last = f"member {name}"


def _read_manifest(bundle: Path, files: Iterator[tuple[str, IO[bytes]]]) -> dict[str, Any]:
    contents = []
    for wanted in (MANIFEST, MANIFEST_DIGEST):
        name, file = next(files, ("nothing", io.BytesIO()))
        if name != wanted:
            raise DeployError(f"{bundle} is not a bundle: {name} in place of {wanted}", _HINT)
        contents.append(_guarded(bundle, name, file, _MAX_MANIFEST))
    manifest, digest = contents
    manifest_digest = hashlib.sha256(manifest).hexdigest()
    expected = digest.decode("ascii", "replace").split(" ")[0]
    if manifest_digest != expected:
        raise DeployError(
            f"{bundle}: member {MANIFEST} is damaged: {MANIFEST_DIGEST} has sha256 {expected},"
            f" found {manifest_digest}",
            _HINT,
        )
    try:
        content: dict[str, Any] = json.loads(manifest)
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}, this version reads {SCHEMA}")
        for name, entry in content["members"].items():
            if not (
                _safe(name) and isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str)
            ):
                raise ValueError(f"bad member {name!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DeployError(f"{bundle}: member {MANIFEST} is not valid: {error}", _HINT) from error
    return content


def _safe(name: str) -> bool:
    parts = name.split("/")
    return all(part not in ("", ".", "..") and "\\" not in part for part in parts)


def _guarded(bundle: Path, name: str, file: IO[bytes], limit: int) -> bytes:
    try:
        content = file.read(limit + 1)
    except _READ_ERRORS as error:
        raise DeployError(f"{bundle}: member {name} is damaged: {error}", _HINT) from error
    if len(content) > limit:
        raise DeployError(f"{bundle}: member {name} is larger than {limit:,} bytes", _HINT)
    return content


def _copy(bundle: Path, name: str, file: IO[bytes], path: Path, entry: dict[str, Any]) -> None:
    digest, left = hashlib.sha256(), entry["bytes"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        while chunk := _guarded_chunk(bundle, name, file):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            out.write(chunk)
    if left or digest.hexdigest() != entry["sha256"]:
        raise DeployError(
            f"{bundle}: member {name} is damaged: expected {entry['bytes']:,} bytes with sha256"
            f" {entry['sha256']}, found"
            + (f" {digest.hexdigest()}" if not left else " another length"),
            _HINT,
        )


def _guarded_chunk(bundle: Path, name: str, file: IO[bytes]) -> bytes:
    try:
        return file.read(_CHUNK)
    except _READ_ERRORS as error:
        raise DeployError(f"{bundle}: member {name} is damaged: {error}", _HINT) from error

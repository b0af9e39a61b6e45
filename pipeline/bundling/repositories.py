"""Triton model repositories in a bundle: their files, which have to be those of the bundle."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engines.errors import DeployError

if TYPE_CHECKING:
    from io import BufferedIOBase

# The file in the folder of a repository that lists its files, with their digests.
MARKER = "assay-triton.json"
# What else is in the folder of a Triton model, besides the versions.
CONFIG, LABELS, WARM_UP = "config.pbtxt", "labels.txt", "warmup"
# Names of files that only repositories have.
RESERVED = (MARKER, CONFIG)


def folders(names: Iterable[str]) -> list[str]:
    """Returns the folders that are Triton model repositories, from the paths of all members."""
    suffix = f"/{MARKER}"
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def check(root: Path, manifest: Mapping[str, Any], made: Iterable[str]) -> None:
    """Checks that servers open nothing but graphs and engines of the bundle. Opens none itself.

    Args:
        root: The folder of the unpacked bundle.
        manifest: Its manifest.
        made: SHA-256 of what its records made.

    Raises:
        DeployError: A file of a repository is none of these, or a configuration is outside of the
            repositories.
    """
    members: Mapping[str, Mapping[str, Any]] = manifest["members"]
    places = folders(members)
    below = [
        (name, name.removeprefix(f"{place}/").split("/"))
        for place in places  # which others may have put into each other
        for name in members
        if name.startswith(f"{place}/")
    ]
    served = {name for name, _ in below}
    for name in members:
        if f"/{name}".endswith(f"/{CONFIG}") and name not in served:
            raise DeployError(f"{root / name} belongs to no model repository that assay wrote")
    known = set(made)
    others = {
        name: members[name]["sha256"]
        for name, parts in below
        if not _is_text(parts) and members[name]["sha256"] not in known
    }
    if others:
        wanted = {(Path(name).name, members[name]["bytes"]) for name in others}
        known |= set(_inside(root, manifest, wanted))
    for name, digest in others.items():
        if digest not in known:
            raise DeployError(
                f"{root / name} is neither a graph nor an engine of the bundle",
                "make the bundle again",
            )


def _is_text(parts: list[str]) -> bool:
    """Whether a file of a repository is one that no backend opens, by the parts of its path."""
    return parts == [MARKER] or parts[1:] in ([CONFIG], [LABELS]) or parts[1:2] == [WARM_UP]


def _inside(
    root: Path, manifest: Mapping[str, Any], wanted: Collection[tuple[str, int]]
) -> Iterator[str]:
    """Yields the SHA-256 of files inside of zip files that are engines, as those of OpenVINO.

    Args:
        root: The folder of the unpacked bundle.
        manifest: Its manifest.
        wanted: Names and sizes in bytes of the files. All others are skipped, since others may
            have made the bundle, and a small zip file can unpack to terabytes.
    """
    for model in manifest["models"].values():
        for engine in model["engines"].values():
            path = root / engine["path"]
            if path.suffix != ".zip":
                continue
            try:
                with zipfile.ZipFile(path) as archive:
                    for entry in {entry.filename: entry for entry in archive.infolist()}.values():
                        if (entry.filename, entry.file_size) in wanted:
                            with archive.open(entry) as file:
                                yield hashlib.file_digest(
                                    cast("BufferedIOBase", file), "sha256"
                                ).hexdigest()
            except (OSError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
                raise DeployError(f"{path} is not a zip file that can be read: {error}") from error

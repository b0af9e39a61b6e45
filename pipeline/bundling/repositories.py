"""Triton model repositories in a bundle: their files, which have to be those of the bundle."""

from __future__ import annotations

import hashlib
import lzma
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from engines.errors import DeployError
from pipeline.bundling import manifest as manifests
from pipeline.bundling import triton_config

if TYPE_CHECKING:
    from io import BufferedIOBase

# The file in the folder of a repository that lists its files, with their digests.
MARKER = "assay-triton.json"
# What is in the folder of a Triton model.
CONFIG, LABELS, WARM_UP, VERSION = "config.pbtxt", "labels.txt", "warmup", "1"
# Names of files that only repositories have.
RESERVED = (MARKER, CONFIG)
_WARM_UP_ROW = re.compile(rf"[^/]+/{WARM_UP}/input\d{{1,9}}", re.ASCII)
# What Triton opens, under the names that its backends know: it runs other files as programs, by
# their names. And graphs among what records made.
_OPENED = re.compile(r"model\.(onnx|plan|xml|bin)|[\w.-]+\.onnx\.data", re.ASCII)
_GRAPH = re.compile(r"model(-cpu)?\.onnx(\.data)?")
_OF_ZIP = ("model.xml", "model.bin")
_IN_VERSION = 3  # parts of the path of a file in a folder of a Triton model
_MAX_CONFIG = 1 << 20
_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
)


def folders(names: Iterable[str]) -> list[str]:
    """Returns the folders that are Triton model repositories, from the paths of all members."""
    suffix = f"/{MARKER}"
    return [name.removesuffix(suffix) for name in names if name.endswith(suffix)]


def check(root: Path, manifest: Mapping[str, Any], outputs: Mapping[str, str]) -> None:
    """Checks that servers open nothing but graphs and engines of the bundle. Opens none itself.

    Args:
        root: The folder of the unpacked bundle.
        manifest: Its manifest.
        outputs: SHA-256 of what its records list as outputs, by path. Not all are in the bundle.

    Raises:
        DeployError: A repository has a file that assay does not write, or one that is neither a
            graph nor an engine of the bundle; or such files are outside of the repositories.
    """
    members: Mapping[str, Mapping[str, Any]] = manifest["members"]
    places = folders(members)
    opened: dict[str, str] = {}
    for name, entry in members.items():
        around = [place for place in places if name.startswith(f"{place}/")]
        if len(around) == 1:
            parts = name.removeprefix(f"{around[0]}/").split("/")
            if _is_opened(root / name, parts, entry["sha256"], manifest["labels"]):
                opened[name] = entry["sha256"]
                if f"{around[0]}/{parts[0]}/{CONFIG}" not in members:
                    raise _refused(root / name, f"has no {CONFIG} beside its folder")
        elif around or Path(name).name in RESERVED:
            raise _refused(root / name, "belongs to no model repository that assay wrote")
    models = manifest["models"].values()
    known = {members[path]["sha256"] for model in models for path in manifests.files(model)}
    known |= {digest for path, digest in outputs.items() if _GRAPH.fullmatch(Path(path).name)}
    wanted = {
        (Path(name).name, members[name]["bytes"])
        for name, digest in opened.items()
        if digest not in known
    }
    if wanted:
        known |= set(_inside(root, manifest, wanted))
    for name, digest in opened.items():
        if digest not in known:
            raise _refused(root / name, "is neither a graph nor an engine of the bundle")


def _is_opened(path: Path, parts: list[str], sha256: str, labels: Sequence[str]) -> bool:
    """Whether a file of a repository is one that a backend opens.

    Args:
        parts: Of its path in the repository.
        labels: The names of the classes.

    Raises:
        DeployError: assay does not write it there.
    """
    if len(parts) == _IN_VERSION and parts[1] == VERSION and _OPENED.fullmatch(parts[2]):
        return True
    if parts[1:] == [CONFIG]:
        _check_config(path)
    elif parts[1:] == [LABELS]:
        lines = "".join(f"{label}\n" for label in labels).encode()
        if sha256 != hashlib.sha256(lines).hexdigest():
            raise _refused(path, "has not the labels of manifest.json")
    elif parts != [MARKER] and not _WARM_UP_ROW.fullmatch("/".join(parts)):
        raise _refused(path, "is not written there by assay")
    return False


def _refused(path: Path, problem: str) -> DeployError:
    return DeployError(f"{path} {problem}", "make the bundle again")


def _check_config(path: Path) -> None:
    """Raises DeployError if a configuration says what assay does not write."""
    content = path.read_bytes() if path.stat().st_size <= _MAX_CONFIG else b""
    try:
        lines = list(triton_config.strange_lines(content.decode()))
    except UnicodeDecodeError:
        lines = ["(no text)"]
    if lines:
        raise _refused(path, f"has what assay does not write: {lines[0].strip()[:80]!r}")


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
    paths = {
        engine["path"]: root / engine["path"]
        for model in manifest["models"].values()
        for engine in model["engines"].values()
    }
    for path in paths.values():
        if path.suffix != ".zip":
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                for entry in {entry.filename: entry for entry in archive.infolist()}.values():
                    one = entry.filename, entry.file_size
                    if entry.filename in _OF_ZIP and one in wanted:
                        with archive.open(entry) as file:
                            digest = hashlib.file_digest(cast("BufferedIOBase", file), "sha256")
                        yield digest.hexdigest()
        except _UNREADABLE as error:
            raise DeployError(f"{path} is not a zip file that can be read: {error}") from error

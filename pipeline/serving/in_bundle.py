"""Triton's model repository inside a bundle: a folder for each machine that built engines."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from engines.errors import DeployError
from pipeline.bundling import manifest as manifests
from pipeline.bundling import provenance
from pipeline.bundling.checking import Unpacked
from pipeline.serving import config, config_checks
from pipeline.serving.repository import MARKER, Source, write
from pipeline.workflow.digests import sha256_file

FOLDER = "triton"  # the repository of the machine that wrote the bundle


def members(sources: Sequence[Source], target: Path) -> dict[str, Path]:
    """Writes a repository into a temporary folder; returns its files by their path in the bundle.

    Raises:
        NotAvailableError: The client library with Triton's messages is not installed.
    """
    write(target, sources, link=True)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    return {f"{FOLDER}/{path.relative_to(target)}": path for path in files}


def check(unpacked: Unpacked, root: Path) -> list[str]:
    """Checks the repositories of an unpacked bundle; returns a line for each.

    The configurations are compared with the golden files, and what the servers open has to be a
    graph or an engine that the bundle's records made.

    Raises:
        DeployError: A configuration contradicts its model, or a file is not of the bundle.
        NotAvailableError: The client library with Triton's messages is not installed.
    """
    golden = list(dict.fromkeys(model.golden for model in unpacked.models.values()))
    lines = []
    known: set[str] = set()
    for folder in manifests.repositories(unpacked.manifest["members"]):
        config.messages()
        known = known or _known(unpacked, root)
        findings = config_checks.check(root / folder, golden)
        problems = [*findings.problems, *_strangers(root / folder, known)]
        if problems:
            raise DeployError(
                f"the model repository {folder} of the bundle: {'; '.join(problems[:5])}",
                "make the bundle again",
            )
        lines.append(f"{folder}: {findings.models} Triton models, no mistake found")
    return lines


def _known(unpacked: Unpacked, root: Path) -> set[str]:
    """Returns the SHA-256 of all that the records made, and of what is inside zip files of it."""
    digests: set[str] = set()
    for prefix, paths in unpacked.manifest["chains"].items():
        below = [path.removeprefix(prefix) for path in paths]
        records = provenance.read_records(root / prefix, below)
        digests |= {
            entry["sha256"] for record in records.values() for entry in record.outputs.values()
        }
    for model in unpacked.manifest["models"].values():
        digests |= {unpacked.manifest["members"][path]["sha256"] for path in manifests.files(model)}
        for path in manifests.files(model):
            if path.endswith(".zip"):
                digests |= set(_inside(root / path))
    return digests


def _inside(path: Path) -> Iterator[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                digest = hashlib.sha256()
                with archive.open(name) as file:
                    while chunk := file.read(1 << 20):
                        digest.update(chunk)
                yield digest.hexdigest()
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise DeployError(f"{path} is not a zip file that can be read: {error}") from error


def _strangers(folder: Path, known: set[str]) -> Iterator[str]:
    """Yields a line for each file that is neither of a repository of ours nor of the bundle."""
    ours = {config.FILE, config.LABELS}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_dir() or parts == (MARKER,) or parts[1:2] == (config.WARM_UP,):
            continue
        if not (len(parts) == 2 and parts[1] in ours) and sha256_file(path) not in known:  # noqa: PLR2004
            yield f"{'/'.join(parts)} is neither a graph nor an engine of the bundle"

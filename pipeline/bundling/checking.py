"""Verifying a bundle on the target machine: its digests, records and engines."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import DeployError, NotAvailableError
from pipeline.bundling import archive, provenance
from pipeline.verification import engine_proof
from pipeline.verification.verdict import Verdict
from pipeline.workflow.artifacts import GRAPH_SUBJECT
from pipeline.workflow.digests import require_file
from pipeline.workflow.records import Record


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        manifest: The bundle's manifest.
        links: Number of links that were checked in the chain of digests.
        verdicts: Verdicts on the graph and every engine in the bundle.
    """

    manifest: dict[str, Any]
    links: int
    verdicts: list[Verdict]

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "manifest": self.manifest,
            "links": self.links,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }


def _subjects(manifest: dict[str, Any]) -> list[str]:
    engine_paths = [entry["path"] for entry in manifest["engines"].values()]
    return [manifest["graph"], manifest["golden"], *engine_paths]


def _check_listed(bundle: Path, manifest: dict[str, Any]) -> None:
    """Raises DeployError if the manifest names a file that is not one of its members."""
    for path in (*_subjects(manifest), *manifest["records"]):
        if not isinstance(path, str) or path not in manifest["members"]:
            raise DeployError(f"{bundle}: manifest.json names {path!r}, which is not a member")


def _check_made(bundle: Path, manifest: dict[str, Any], records: Mapping[str, Record]) -> None:
    """Raises DeployError if no record lists the graph, the golden file or an engine."""
    recorded = {label for record in records.values() for label in record.outputs}
    for path in _subjects(manifest):
        if path not in recorded:
            raise DeployError(f"{bundle}: the chain of records is broken: no record made {path}")


@dataclass(frozen=True)
class Unpacked:
    """An unpacked bundle whose digests and chain of records have been checked.

    Attributes:
        manifest: The bundle's manifest.
        links: Number of links that were checked in the chain of digests.
        subjects: Paths of the graph, under "graph", and of the engines, by name.
        golden: Path of the golden file.
        precision: The precision of the graph.
    """

    manifest: dict[str, Any]
    links: int
    subjects: dict[str, Path]
    golden: Path
    precision: str


def unpack(bundle: Path, root: Path) -> Unpacked:
    """Unpacks a bundle into an empty folder and checks its digests; opens no engine.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
    """
    require_file(bundle, "make a bundle with `assay bundle MODEL`")
    manifest = archive.extract(bundle, root)
    try:
        _check_listed(bundle, manifest)
        digests = {name: entry["sha256"] for name, entry in manifest["members"].items()}
        records = provenance.read_records(root, manifest["records"])
        links = provenance.check(records, digests)
        _check_made(bundle, manifest, records)
        subjects = {GRAPH_SUBJECT: root / manifest["graph"]}
        subjects |= {name: root / entry["path"] for name, entry in manifest["engines"].items()}
        golden, precision = root / manifest["golden"], manifest["precision"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DeployError(f"{bundle}: manifest.json is not valid: {error!r}") from error
    return Unpacked(manifest, links, subjects, golden, precision)


def check(bundle: Path, device: str, threads: int) -> Checked:
    """Checks a bundle and judges its graph and every engine that this machine can run.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one inference.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
        NotAvailableError: This machine can run nothing in the bundle.
    """
    with tempfile.TemporaryDirectory(prefix="assay-check-") as folder:
        unpacked = unpack(bundle, Path(folder))
        verdicts = [
            engine_proof.prove(
                name, path, unpacked.golden, unpacked.precision, device=device, threads=threads
            )
            for name, path in unpacked.subjects.items()
        ]
    if all(verdict.status == "not run" for verdict in verdicts):
        reasons = "; ".join(f"{verdict.subject}: {verdict.reason}" for verdict in verdicts)
        raise NotAvailableError(
            f"every digest of {bundle} matches, but nothing in it can be run on this machine:"
            f" {reasons}",
            "`pip install onnxruntime-gpu` runs at least the graph",
        )
    return Checked(unpacked.manifest, unpacked.links, verdicts)

"""Proving a bundle where it is to run: every digest, the chain, and every engine there is."""

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
    """What a check found.

    Attributes:
        manifest: The bundle's manifest.
        links: How many links of the chain of digests hold.
        verdicts: On the graph and on every engine in the bundle.
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
    """Raises DeployError if a file that the manifest names is not among its members."""
    for path in (*_subjects(manifest), *manifest["records"]):
        if not isinstance(path, str) or path not in manifest["members"]:
            raise DeployError(f"{bundle}: manifest.json names {path!r}, which is not a member")


def _check_made(bundle: Path, manifest: dict[str, Any], records: Mapping[str, Record]) -> None:
    """Raises DeployError if no record vouches for something that is to be proved."""
    recorded = {label for record in records.values() for label in record.outputs}
    for path in _subjects(manifest):
        if path not in recorded:
            raise DeployError(f"{bundle}: the chain of records is broken: no record made {path}")


@dataclass(frozen=True)
class Unpacked:
    """A bundle in a folder, with every digest right and its chain of records whole.

    Attributes:
        links: How many links of the chain of digests hold.
        subjects: What can be proved, by name: "graph" and engines, with the file of each.
    """

    manifest: dict[str, Any]
    links: int
    subjects: dict[str, Path]
    golden: Path
    precision: str


def unpack(bundle: Path, root: Path) -> Unpacked:
    """Unpacks a bundle into an empty folder, and opens nothing of it.

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
    """Checks a bundle and proves every engine that can run here on its golden file.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
        NotAvailableError: Nothing in it can be run on this machine.
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
            f"every digest of {bundle} is right, but nothing in it can be run here: {reasons}",
            "`pip install onnxruntime-gpu` proves at least the graph",
        )
    return Checked(unpacked.manifest, unpacked.links, verdicts)

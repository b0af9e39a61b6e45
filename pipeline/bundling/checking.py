"""Proving a bundle where it is to run: every digest, the chain, and every engine there is."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.errors import DeployError, NotAvailableError
from pipeline import engine_proof
from pipeline.bundling import archive, chain
from pipeline.parity import Verdict


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


def check(bundle: Path, device: str, threads: int) -> Checked:
    """Checks a bundle and proves every engine that can run here on its golden file.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
        NotAvailableError: Nothing in it can be run on this machine.
    """
    if not bundle.is_file():
        raise DeployError(f"there is no bundle {bundle}", "make one with `assay bundle MODEL`")
    with tempfile.TemporaryDirectory(prefix="assay-check-") as folder:
        root = Path(folder)
        manifest = archive.extract(bundle, root)
        try:
            digests = {name: entry["sha256"] for name, entry in manifest["members"].items()}
            links = chain.check(chain.read_records(root, manifest["records"]), digests)
            subjects = [(engine_proof.GRAPH, root / manifest["graph"])]
            subjects += [(n, root / e["path"]) for n, e in manifest["engines"].items()]
            golden, precision = root / manifest["golden"], manifest["precision"]
        except (KeyError, TypeError, AttributeError) as error:
            raise DeployError(f"{bundle}: the manifest lacks {error}") from error
        verdicts = [
            engine_proof.prove(name, path, golden, precision, device=device, threads=threads)
            for name, path in subjects
        ]
    if all(verdict.status == "not run" for verdict in verdicts):
        reasons = "; ".join(f"{verdict.subject}: {verdict.reason}" for verdict in verdicts)
        raise NotAvailableError(
            f"every digest of {bundle} is right, but nothing in it can be run here: {reasons}",
            "`pip install onnxruntime-gpu` proves at least the graph",
        )
    return Checked(manifest, links, verdicts)

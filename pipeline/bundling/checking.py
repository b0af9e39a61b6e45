"""Verifying a bundle on the target machine: its digests, records and engines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import engines
from engines import temporary
from engines.checks import check_device
from engines.errors import DeployError, NotAvailableError, UsageError, suggestion
from pipeline.bundling import archive, attestation, provenance, signature
from pipeline.golden import file as goldens
from pipeline.verification import engine_proof
from pipeline.verification.verdict import Verdict, not_run
from pipeline.workflow.artifacts import GRAPH_SUBJECT
from pipeline.workflow.digests import require_file
from pipeline.workflow.records import Record


@dataclass(frozen=True)
class Checked:
    """The result of a check.

    Attributes:
        manifest: The bundle's manifest.
        links: Number of links that were checked in the chain of digests.
        verdicts: Verdicts on the graph and the engines in the bundle; empty if only digests were
            to be checked.
        signer: Who signed the bundle, in words; "" if no signature was to be verified.
    """

    manifest: dict[str, Any]
    links: int
    verdicts: list[Verdict]
    signer: str = ""

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return {
            "manifest": self.manifest,
            "links": self.links,
            "signer": self.signer,
            "verdicts": [asdict(verdict) for verdict in self.verdicts],
        }


def subjects_of(manifest: dict[str, Any]) -> list[str]:
    """Returns the paths of the graph, the golden file and the engines."""
    engine_paths = [entry["path"] for entry in manifest["engines"].values()]
    return [manifest["graph"], manifest["golden"], *engine_paths]


def _check_listed(bundle: Path, manifest: dict[str, Any]) -> None:
    """Raises DeployError if the manifest names a file that is not one of its members.

    Raises:
        TypeError: A field has the wrong type.
    """
    for field in ("model", "precision", "graph", "golden"):
        if not isinstance(manifest[field], str):
            raise TypeError(f"{field} is not text")
    if not isinstance(manifest["records"], list) or not isinstance(manifest["labels"], list):
        raise TypeError("records or labels are not a list")
    for path in (*subjects_of(manifest), *manifest["records"]):
        if not isinstance(path, str) or path not in manifest["members"]:
            raise DeployError(f"{bundle}: manifest.json names {path!r}, which is not a member")


def _check_made(bundle: Path, manifest: dict[str, Any], records: Mapping[str, Record]) -> None:
    """Raises DeployError if no record lists the graph, the golden file or an engine."""
    recorded = {label for record in records.values() for label in record.outputs}
    for path in subjects_of(manifest):
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
        signer: See `Checked`.
    """

    manifest: dict[str, Any]
    links: int
    subjects: dict[str, Path]
    golden: Path
    precision: str
    signer: str = ""

    def prove(self, name: str, device: str, threads: int) -> Verdict:
        """Returns the verdict on the graph or on an engine, on this machine.

        Raises:
            UsageError: The device does not exist.
        """
        if name != GRAPH_SUBJECT and name not in engines.names():
            reason = f"this version of assay has no engine {name!r}"
            return not_run(name, self.precision, reason)
        return engine_proof.prove(
            name,
            self.subjects[name],
            self.golden,
            self.precision,
            device=device,
            threads=threads,
            or_failed=True,
        )


def unpack(
    bundle: Path,
    root: Path,
    limit: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
) -> Unpacked:
    """Unpacks a bundle into an empty folder and checks its digests; opens no engine.

    Args:
        limit: Bytes that all members together may take.
        trusted: Whose signature the bundle must have; it is verified before anything is unpacked.

    Raises:
        DeployError: The bundle is damaged, its chain is broken, or its signature is not valid.
    """
    require_file(bundle, "give the path of a file that `assay bundle` wrote")
    signed = None if trusted is None else signature.verify(bundle, trusted)
    manifest = archive.extract(bundle, root, limit, signed.sha256 if signed else None)
    try:
        _check_listed(bundle, manifest)
        digests = {name: entry["sha256"] for name, entry in manifest["members"].items()}
        with _naming(bundle, root):
            records = provenance.read_records(root, manifest["records"])
            links = provenance.check(records, digests)
        _check_made(bundle, manifest, records)
        with _naming(bundle, root):
            attestation.check(root, records, subjects_of(manifest))
        subjects = {GRAPH_SUBJECT: root / manifest["graph"]}
        subjects |= {name: root / entry["path"] for name, entry in manifest["engines"].items()}
        golden, precision = root / manifest["golden"], manifest["precision"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DeployError(f"{bundle}: manifest.json is not valid: {error!r}") from error
    signer = signed.signer if signed else ""
    return Unpacked(manifest, links, subjects, golden, precision, signer)


@contextmanager
def _naming(bundle: Path, root: Path) -> Iterator[None]:
    """Makes errors name the bundle and its member instead of the unpacked file.

    A fault of a member is a fault of the bundle, not wrong usage of the command.
    """
    try:
        yield
    except DeployError as error:
        message = _renamed(error.message, bundle, root)
        if isinstance(error, UsageError):
            raise DeployError(message, error.hint) from error
        error.message, error.hint = message, _renamed(error.hint, bundle, root)
        raise


def _renamed(text: str, bundle: Path, root: Path) -> str:
    return text.replace(f"{root}/", f"{bundle}: member ")


def check(
    bundle: Path,
    device: str,
    threads: int,
    *,
    engine: str | None = None,
    digests_only: bool = False,
    max_bytes: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
    consent: Callable[[Sequence[str]], None] = lambda _lines: None,
) -> Checked:
    """Checks a bundle and judges its graph and every engine that this machine can run.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one inference.
        engine: The only engine to judge besides the graph.
        digests_only: Open neither the graph nor an engine; there are no verdicts then.
        max_bytes: Bytes that all members together may take.
        trusted: Whose signature the bundle must have.
        consent: Called before anything of a bundle is opened whose signature was not to be
            verified, with a line for each file that will be; an exception ends the check.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
        UsageError: The bundle does not have the engine, or the device is unknown.
        NotAvailableError: This machine can run nothing in the bundle.
    """
    check_device(device)
    if digests_only and engine is not None:
        raise UsageError("--digests-only opens no engine", "leave out --engine")
    # Resolved, as engines do before they name a file.
    with temporary.folder() as folder:
        root = folder.resolve()
        unpacked = unpack(bundle, root, max_bytes, trusted)
        if engine is not None and engine not in unpacked.subjects:
            known = [name for name in unpacked.subjects if name != GRAPH_SUBJECT]
            raise UsageError(f"{bundle} has no engine {engine!r}", suggestion(engine, known))
        names = unpacked.subjects if engine is None else (GRAPH_SUBJECT, engine)
        verdicts = []
        if not digests_only:
            if not unpacked.signer:
                consent(opened(unpacked, names))
            verdicts = _prove(bundle, root, unpacked, names, device, threads)
    if verdicts and all(verdict.status == "not run" for verdict in verdicts):
        reasons = "; ".join(f"{verdict.subject}: {verdict.reason}" for verdict in verdicts)
        raise NotAvailableError(
            f"every digest of {bundle} matches, but nothing in it can be run on this machine:"
            f" {reasons}",
            "`pip install onnxruntime-gpu` runs at least the graph",
        )
    return Checked(unpacked.manifest, unpacked.links, verdicts, unpacked.signer)


def opened(unpacked: Unpacked, names: Iterable[str]) -> list[str]:
    """Returns a line for each file that will be opened: what it is, and what opens it."""
    lines = []
    for name in names:
        if name == GRAPH_SUBJECT:
            lines.append(f"{unpacked.manifest['graph']}: a graph that ONNX Runtime runs")
        elif name in engines.names() and engines.get(name).available().run:
            engine = engines.get(name)
            what = "a program, which runs with your rights," if engine.machine_code else "an engine"
            path = unpacked.manifest["engines"][name]["path"]
            lines.append(f"{path}: {what} that {engine.runtime_module()} opens")
    return lines


def _prove(
    bundle: Path,
    root: Path,
    unpacked: Unpacked,
    names: Iterable[str],
    device: str,
    threads: int,
) -> list[Verdict]:
    verdicts = []
    with _naming(bundle, root):
        golden = goldens.load(unpacked.golden)
        if golden.precision != unpacked.precision:
            raise DeployError(
                f"{unpacked.golden} is for {golden.precision}, but manifest.json says"
                f" {unpacked.precision[:40]!r}"
            )
        del golden  # the process that judges reads it again
        for name in names:
            verdict = unpacked.prove(name, device, threads)
            reason = _renamed(verdict.reason, bundle, root)
            verdicts.append(dataclasses.replace(verdict, reason=reason))
    return verdicts

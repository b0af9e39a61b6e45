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
from pipeline.bundling import archive, attestation, bom, provenance, repositories, signature
from pipeline.bundling import manifest as manifests
from pipeline.golden import file as goldens
from pipeline.verification import engine_proof
from pipeline.verification.verdict import Verdict, not_run
from pipeline.workflow.artifacts import GRAPH_SUBJECT
from pipeline.workflow.digests import require_file


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


@dataclass(frozen=True)
class Model:
    """The model at one precision, in an unpacked bundle.

    Attributes:
        precision: The precision of the graph.
        subjects: Paths of the graph, under "graph", and of the engines, by name.
        golden: Path of the golden file.
    """

    precision: str
    subjects: dict[str, Path]
    golden: Path

    @property
    def engines(self) -> list[str]:
        """The names of the engines."""
        return [name for name in self.subjects if name != GRAPH_SUBJECT]

    def prove(self, name: str, device: str, threads: int) -> Verdict:
        """Returns the verdict on the graph or on an engine, on this machine.

        Raises:
            UsageError: The device does not exist.
        """
        backend = manifests.backend(name)
        if name != GRAPH_SUBJECT and backend not in engines.names():
            reason = f"this version of assay has no engine {backend!r}"
            return not_run(name, self.precision, reason)
        verdict = engine_proof.prove(
            backend,
            self.subjects[name],
            self.golden,
            self.precision,
            device=device,
            threads=threads,
            or_failed=True,
        )
        return dataclasses.replace(verdict, subject=name)


@dataclass(frozen=True)
class Unpacked:
    """An unpacked bundle whose digests and chain of records have been checked.

    Attributes:
        manifest: The bundle's manifest.
        links: Number of links that were checked in the chain of digests.
        models: The model by precision.
        signer: See `Checked`.
    """

    manifest: dict[str, Any]
    links: int
    models: dict[str, Model]
    signer: str = ""

    def model(self, precision: str | None) -> Model:
        """Returns the model at a precision, or at the first one of the bundle.

        Raises:
            UsageError: The bundle does not have the precision.
        """
        if precision is None:
            return next(iter(self.models.values()))
        if precision not in self.models:
            raise UsageError(
                f"the bundle has no precision {precision!r}", suggestion(precision, [*self.models])
            )
        return self.models[precision]


def engines_named(models: Sequence[Model], engine: str | None) -> list[str]:
    """Returns the names of the engines of models that an option names.

    Args:
        engine: The name of one engine, or the backend of several; None means all.

    Raises:
        UsageError: The models do not have it.
    """
    known = [*dict.fromkeys(name for model in models for name in model.engines)]
    names = [name for name in known if engine in (None, name, manifests.backend(name))]
    if engine is not None and not names:
        where = ", ".join(model.precision for model in models)
        raise UsageError(
            f"the bundle has no engine {engine!r} in {where}", suggestion(engine, known)
        )
    return names


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
    require_file(bundle, archive.NO_BUNDLE)
    signed = None if trusted is None else signature.verify(bundle, trusted)
    manifest = archive.extract(bundle, root, limit, signed.sha256 if signed else None)
    try:
        manifests.check_fields(manifest)
        digests = {name: entry["sha256"] for name, entry in manifest["members"].items()}
        _check_listed(bundle, manifest)
        links, outputs = _check_chains(bundle, root, manifest, digests)
        with naming(bundle, root):
            repositories.check(root, manifest, outputs)
        if manifest["content"] != manifests.content_digest(manifest, digests):
            raise DeployError(
                f"{bundle}: manifest.json says content {manifest['content']!r}, but its graphs,"
                " golden files and engines have another digest"
            )
        models = {
            precision: Model(
                precision,
                {GRAPH_SUBJECT: root / model["graph"]}
                | {name: root / entry["path"] for name, entry in model["engines"].items()},
                root / model["golden"],
            )
            # JSON of ours is sorted by name.
            for precision, model in manifests.in_order(manifest["models"]).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeployError(f"{bundle}: manifest.json is not valid: {error!r:.200}") from error
    return Unpacked(manifest, links, models, signed.signer if signed else "")


def _check_listed(bundle: Path, manifest: dict[str, Any]) -> None:
    """Raises DeployError if a named file is not a member."""
    named = [path for model in manifest["models"].values() for path in manifests.named(model)]
    for path in (*named, *(path for paths in manifest["chains"].values() for path in paths)):
        if not isinstance(path, str) or path not in manifest["members"]:
            raise DeployError(f"{bundle}: manifest.json names {path!r}, which is not a member")


def _check_chains(
    bundle: Path, root: Path, manifest: dict[str, Any], digests: Mapping[str, str]
) -> tuple[int, dict[str, str]]:
    """Checks each chain of records, and that they made all that the manifest names.

    Returns:
        The number of links that were checked, and the SHA-256 by path of all that records made.

    Raises:
        DeployError: A chain is broken, or no record lists a graph, a golden file or an engine.
    """
    links = 0
    outputs: dict[str, str] = {}
    chains, belows = {}, {}
    for prefix, paths in manifest["chains"].items():
        if any(not path.startswith(prefix) for path in paths):
            raise DeployError(f"{bundle}: manifest.json names records that are not in {prefix!r}")
        below = {
            name.removeprefix(prefix): digest
            for name, digest in digests.items()
            if name.startswith(prefix)
        }
        with naming(bundle, root):
            records = provenance.read_records(
                root / prefix, [path.removeprefix(prefix) for path in paths]
            )
        try:
            links += provenance.check(records, below)
        except DeployError as error:
            error.message = f"{bundle}: {error.message}"
            raise
        chains[prefix], belows[prefix] = records, below
        for record in records.values():
            outputs |= {
                f"{prefix}{label}": entry["sha256"] for label, entry in record.outputs.items()
            }
    for model in manifest["models"].values():
        for path in manifests.named(model):
            if path not in outputs:
                raise DeployError(
                    f"{bundle}: the chain of records is broken: no record made {path}"
                )
    with naming(bundle, root):
        for prefix, records in chains.items():
            attestation.check(root / prefix, records)
            if bom.MEMBER not in belows[prefix]:
                raise DeployError(f"{bundle} has no {prefix}{bom.MEMBER}, its bill of materials")
            bom.check(root / prefix / bom.MEMBER, belows[prefix])
    return links, outputs


@contextmanager
def naming(bundle: Path, root: Path) -> Iterator[None]:
    """Makes errors name the bundle and its member instead of the unpacked file.

    A fault of a member is a fault of the bundle, not wrong usage of the command.
    """
    try:
        yield
    except DeployError as error:
        message = renamed(error.message, bundle, root)
        if isinstance(error, UsageError):
            raise DeployError(message, error.hint) from error
        error.message, error.hint = message, renamed(error.hint, bundle, root)
        raise


def renamed(text: str, bundle: Path, root: Path) -> str:
    """Returns a text that names members of the bundle instead of unpacked files."""
    return text.replace(f"{root}/", f"{bundle}: member ")


def check(
    bundle: Path,
    device: str,
    threads: int,
    *,
    engine: str | None = None,
    precision: str | None = None,
    digests_only: bool = False,
    max_bytes: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
    consent: Callable[[Sequence[str]], None] = lambda _lines: None,
    further: Callable[[Unpacked, Path], None] = lambda _unpacked, _root: None,
) -> Checked:
    """Checks a bundle and judges its graphs and every engine that this machine can run.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one inference.
        engine: The only engine to judge besides the graphs, or the backend of those.
        precision: The only precision to judge.
        digests_only: Open neither a graph nor an engine; there are no verdicts then.
        max_bytes: Bytes that all members together may take.
        trusted: Whose signature the bundle must have; it replaces the consent.
        consent: Called before anything is opened, with a line for each file that will be; an
            exception ends the check.
        further: Called with the unpacked bundle and its folder once something may be opened, to
            check more of it.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
        UsageError: The bundle does not have the engine or the precision, or the device is unknown.
        NotAvailableError: This machine can run nothing in the bundle.
    """
    check_device(device)
    if digests_only and (engine is not None or precision is not None):
        option = "--engine" if engine is not None else "--precision"
        raise UsageError("--digests-only opens no engine", f"leave out {option}")
    # Resolved, as engines do before they name a file.
    with temporary.folder() as folder:
        root = folder.resolve()
        unpacked = unpack(bundle, root, max_bytes, trusted)
        models = [*unpacked.models.values()] if precision is None else [unpacked.model(precision)]
        names = engines_named(models, engine)
        wanted = [
            (model, name)
            for model in models
            for name in model.subjects
            if name in names or name == GRAPH_SUBJECT
        ]
        verdicts = []
        if not digests_only:
            if not unpacked.signer:
                consent(opened(root, wanted))
            with naming(bundle, root):
                further(unpacked, root)
            verdicts = _prove(bundle, root, wanted, device, threads)
    if verdicts and all(verdict.status == "not run" for verdict in verdicts):
        reasons = "; ".join(f"{verdict.subject}: {verdict.reason}" for verdict in verdicts)
        raise NotAvailableError(
            f"every digest of {bundle} matches, but nothing in it can be run on this machine:"
            f" {reasons}",
            "`pip install onnxruntime-gpu` runs at least the graph",
        )
    return Checked(unpacked.manifest, unpacked.links, verdicts, unpacked.signer)


def opened(root: Path, subjects: Iterable[tuple[Model, str]]) -> list[str]:
    """Returns a line for each file that will be opened: what it is, and what opens it.

    Args:
        root: The folder of the unpacked bundle.
    """
    lines = []
    for model, name in subjects:
        path, backend = model.subjects[name].relative_to(root), manifests.backend(name)
        if name == GRAPH_SUBJECT:
            lines.append(f"{path}: a graph that ONNX Runtime runs")
        elif backend in engines.names() and engines.get(backend).available().run:
            engine = engines.get(backend)
            what = "a program, which runs with your rights," if engine.machine_code else "an engine"
            lines.append(f"{path}: {what} that {engine.runtime_module()} opens")
    return lines


def _prove(
    bundle: Path,
    root: Path,
    subjects: Iterable[tuple[Model, str]],
    device: str,
    threads: int,
) -> list[Verdict]:
    verdicts = []
    with naming(bundle, root):
        for model, name in subjects:
            if name == GRAPH_SUBJECT:  # the first of each precision
                _require_precision(model)
            verdict = model.prove(name, device, threads)
            reason = renamed(verdict.reason, bundle, root)
            verdicts.append(dataclasses.replace(verdict, reason=reason))
    return verdicts


def _require_precision(model: Model) -> None:
    """Raises DeployError if the golden file is for another precision than the manifest says."""
    golden = goldens.load(model.golden)
    if golden.precision != model.precision:
        raise DeployError(
            f"{model.golden} is for {golden.precision}, but manifest.json says"
            f" {model.precision[:40]!r}"
        )

"""Building the engines of a bundle again on this machine, and judging them by its region."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import engines
from engines import temporary
from engines.checks import check_device
from engines.errors import (
    DeployError,
    NotAvailableError,
    RefusedError,
    UsageError,
    suggestion,
)
from pipeline.bundling import archive, checking, merging, signature
from pipeline.bundling import manifest as manifests
from pipeline.rebuilding import region as regions
from pipeline.rebuilding import spread
from pipeline.verification.verdict import Verdict, from_json
from pipeline.workflow import chain, console, records, runner
from pipeline.workflow.artifacts import (
    BUNDLE,
    DIST,
    ENGINE,
    ENGINE_VERDICT,
    GOLDEN,
    PROGRAM,
    Artifact,
    record_beside,
)
from pipeline.workflow.digests import read_json, sha256_file
from pipeline.workflow.stage import options


@dataclass(frozen=True)
class Planned:
    """An engine of an unpacked bundle that can be built again.

    Attributes:
        name: Its name in the bundle.
        root: The folder below which its files and records lie, as below a folder of artifacts.
        params: The options of its build, as the build stage takes them.
        source: What it is built from.
        builds: The earlier builds with their acceptance region, if the bundle has them.
    """

    name: str
    precision: str
    root: Path
    params: Any
    source: Path
    builds: regions.Builds | None

    @property
    def region(self) -> regions.Region | None:
        """The acceptance region, if the bundle has one."""
        return self.builds.region if self.builds is not None else None

    def at_home(self, device: str, threads: int) -> bool:
        """Whether a device of this machine is as that of the earlier builds."""
        return self.builds is not None and self.builds.machine == spread.kind(device, threads)

    @property
    def fields(self) -> dict[str, str]:
        """What fills the paths of its artifacts."""
        return {name: getattr(self.params, name) for name in ("model", "precision", "engine")}

    def at(self, artifact: Artifact) -> Path:
        """Returns the file of one of its artifacts."""
        return self.root / artifact.at(**self.fields).path


@dataclass(frozen=True)
class Rebuilt:
    """An engine that was built again on this machine.

    Attributes:
        name: The name of the engine of the bundle.
        verdict: On the new engine, by the bundle's golden file.
        build: Its figures.
        region: The acceptance region, if the bundle has one.
        outside: What of error and flips is outside of the region, in words.
        slower: Which latencies are, in words.
        same_kind: This machine is of the kind on which the region's latencies were measured.
        same_file: It has the same bytes as the engine in the bundle.
    """

    name: str
    precision: str
    verdict: Verdict
    build: regions.Build
    region: regions.Region | None
    outside: list[str]
    slower: list[str]
    same_kind: bool
    same_file: bool


@dataclass(frozen=True)
class Result:
    """What was built again of a bundle.

    Attributes:
        manifest: The bundle's manifest.
        links: Number of links that were checked in the chain of digests.
        signer: Who signed the bundle, in words; "" if no signature was to be verified.
        rebuilt: The engines.
    """

    manifest: dict[str, Any]
    links: int
    signer: str
    rebuilt: list[Rebuilt]

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)


def rebuild(
    bundle: Path,
    device: str,
    threads: int,
    *,
    engine: str | None = None,
    precision: str | None = None,
    max_bytes: int = archive.MAX_BYTES,
    trusted: signature.Trusted | None = None,
    consent: Callable[[Sequence[str]], None] = lambda _lines: None,
    judge: Callable[[Result], None] = lambda _result: None,
    out: Path | None = None,
) -> Result:
    """Builds engines of a bundle on this machine, from its graph and with the recorded options.

    Args:
        device: Where the new engines are proved: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads of one inference.
        engine: The only engine to build; by default all that this machine can build. Of several
            for one backend, only one is built then: rather that of a machine as this one.
        precision: The only precision.
        max_bytes: Bytes that all members together may take.
        trusted: Whose signature the bundle must have; it replaces the consent.
        consent: Called before anything is built, with a line for each engine that will be; an
            exception ends it.
        judge: Called with the result before `out` is written; an exception ends it.
        out: A bundle to write, which has the new engines, too. It must not exist.

    Raises:
        DeployError: The bundle is damaged or its chain is broken.
        UsageError: The bundle does not have the engine or the precision, the device is unknown, or
            `out` exists.
        NotAvailableError: This machine can build none of the engines.
        CrashedError: A library ended the process that built an engine.
    """
    check_device(device)
    if out is not None and out.exists():
        raise UsageError(f"--out {out} exists", "give the name of a new file, or remove it")
    # Resolved, as engines do before they name a file.
    with temporary.folder() as folder:
        root = folder.resolve()
        unpacked = checking.unpack(bundle, root, max_bytes, trusted)
        models = [*unpacked.models.values()] if precision is None else [unpacked.model(precision)]
        known = [*dict.fromkeys(name for model in models for name in model.engines)]
        if engine is not None and engine not in known:
            raise UsageError(f"{bundle} has no engine {engine!r}", suggestion(engine, known))
        wanted = known if engine is None else [engine]
        with checking.naming(bundle, root):
            plans = _plans(root, unpacked.manifest, models, wanted, threads)
        if not unpacked.signer:
            consent([_line(plan, root) for plan in plans])
        rebuilt, built = [], []
        refused: list[DeployError] = []
        with checking.naming(bundle, root):
            for plan in plans:
                try:
                    rebuilt.append(_rebuild(plan, device, threads))
                except (NotAvailableError, RefusedError) as error:
                    console.say(f"without {plan.name} in {plan.precision}: {error.message}")
                    refused.append(error)
                else:
                    built.append(plan)
            if not rebuilt:
                raise _none_built(refused)
        rebuilt = [_named(entry, bundle, root) for entry in rebuilt]
        result = Result(unpacked.manifest, unpacked.links, unpacked.signer, rebuilt)
        judge(result)
        if out is not None:
            _write(bundle, built, out, max_bytes, trusted)
    return result


def _plans(
    root: Path,
    manifest: Mapping[str, Any],
    models: Sequence[checking.Model],
    wanted: Collection[str],
    threads: int,
) -> list[Planned]:
    """Returns what can be built of the wanted engines; prints why the others cannot.

    Raises:
        NotAvailableError: This machine can build none of them.
    """
    plans: list[Planned] = []
    reasons: list[DeployError] = []
    for model in models:
        of_backend: dict[str, list[Planned]] = {}
        for name in model.engines:
            if name not in wanted:
                continue
            try:
                plan = _plan(root, manifest, model, name)
            except NotAvailableError as error:
                console.say(f"without {name} in {model.precision}: {error.message}")
                reasons.append(error)
            else:
                of_backend.setdefault(manifests.backend(name), []).append(plan)
        plans += [
            max(several, key=partial(_preference, threads=threads))
            for several in of_backend.values()
        ]
    if not plans:
        raise _none_built(reasons)
    return plans


def _preference(plan: Planned, threads: int) -> tuple[bool, bool]:
    """Ranks engines of one backend: first one whose region is of a machine as this one."""
    if plan.builds is None or plan.region is None:
        return False, False
    return plan.at_home(plan.builds.device, threads), True


def _none_built(errors: Sequence[DeployError]) -> NotAvailableError:
    """Returns the error for no engine at all, from the reason of each."""
    message = "; ".join(dict.fromkeys(error.message for error in errors))
    hint = next((error.hint for error in errors if error.hint), "build them on another machine")
    return NotAvailableError(f"nothing of the bundle can be built here: {message}", hint)


def _plan(root: Path, manifest: Mapping[str, Any], model: checking.Model, name: str) -> Planned:
    """Reads how an engine was built.

    Raises:
        NotAvailableError: It cannot be built here.
        DeployError: Its record is not that of a build.
    """
    backend = manifests.backend(name)
    if backend not in engines.names():
        raise NotAvailableError(
            f"this version of assay has no engine {backend!r}", "install the newest version"
        )
    entry = manifest["models"][model.precision]["engines"][name]
    path: str = entry["path"]
    prefix = max((part for part in manifest["chains"] if path.startswith(part)), key=len)
    record = records.load(record_beside(root / path))
    if record is None or record.stage != ENGINE.stage:
        raise DeployError(f"{record_beside(root / path)} is not the record of a build")
    params = _params(record, root / path)
    fields = {key: getattr(params, key) for key in ("model", "precision", "engine")}
    # The stage writes there. A name such as ".." would lead elsewhere.
    label = ENGINE.at(**fields).label
    if f"{prefix}{label}" != path or (params.precision, params.engine) != (
        model.precision,
        backend,
    ):
        raise DeployError(
            f"{record_beside(root / path)} is of {params.engine!r:.40} in {params.precision!r:.40},"
            f" which is not {name} in {model.precision}"
        )
    state = engines.get(backend).available()
    if not state.build:
        raise NotAvailableError(
            f"engine {backend!r} cannot be built here: {state.reason}", state.install
        )
    source = _source(root / prefix, record, name)
    builds = regions.load(root / entry["builds"]) if "builds" in entry else None
    return Planned(
        name,
        model.precision,
        root / prefix,
        params,
        source,
        builds,
    )


def _source(root: Path, record: records.Record, name: str) -> Path:
    """Returns what an engine was built from.

    Raises:
        NotAvailableError: The bundle does not have it.
    """
    # All that a build reads besides is small, and always in a bundle.
    missing = [label for label in record.inputs if not (root / label).is_file()]
    if missing:
        raise NotAvailableError(
            f"{name} is built from {', '.join(missing)}, which the bundle does not have",
            "write the bundle with `--include source`",
        )
    first = [label for label in record.inputs if Path(label).suffix in (".onnx", ".pt2")]
    if not first:
        raise DeployError(f"the record of {name} names neither a graph nor a program")
    return root / first[0]


def _params(record: records.Record, path: Path) -> Any:
    """Returns the options of a build, as the stage takes them here.

    Raises:
        DeployError: This version does not have one of them, or it has a value of another type.
    """
    where = record_beside(path)
    stage = chain.stage(ENGINE.stage)
    declared = {option.name: option for option in options(stage.params)}
    if unknown := record.params.keys() - declared.keys():
        raise DeployError(
            f"{where} has options that this version does not have: {', '.join(sorted(unknown))}",
            "install the version that wrote the bundle",
        )
    values: dict[str, Any] = {}
    for name, value in record.params.items():
        option = declared[name]
        items = value if option.many and isinstance(value, list) else [value]
        absent = value is None and option.default is None and not option.required
        if not absent and not all(type(item) is option.type for item in items):
            raise DeployError(f"{where}: {value!r:.40} is not a value of {option.flag}")
        values[name] = tuple(items) if option.many else value
    if not {"model", "precision", "engine"} <= values.keys():
        raise DeployError(f"{where} does not say of which model, precision and engine it is")
    # Once is enough: what the builds differ in is known, or cannot be compared.
    params = stage.params(**{**values, "repeat": None})
    for name in ("precision", "engine"):
        known = declared[name].names
        if known is not None and values[name] not in known():
            raise NotAvailableError(
                f"this version of assay has no {name} {values[name]!r:.40}",
                "install the newest version",
            )
    return params


def _line(plan: Planned, root: Path) -> str:
    """Returns what is built, from what and by what, for the question of trust."""
    engine = engines.get(plan.params.engine)
    what = "a program" if plan.source.name == PROGRAM.name else "a graph"
    return (
        f"{plan.source.relative_to(root)}: {what} from which {engine.module} builds"
        f" {plan.name}, and runs it"
    )


def _rebuild(plan: Planned, device: str, threads: int) -> Rebuilt:
    """Builds an engine in the place of the bundle's, proves it, and measures it.

    The stages do it, in the folder of the unpacked bundle, so that their records are the new links
    of its chain.
    """
    path = plan.at(ENGINE)
    before = sha256_file(path)
    # Else the stages would find that nothing has changed.
    for artifact in (ENGINE, ENGINE_VERDICT):
        (plan.root / artifact.at(**plan.fields).record).unlink(missing_ok=True)
    store = runner.Store(plan.root, plan.root / DIST)
    with spread.fresh_caches():
        outcome = runner.run(chain.stage(ENGINE.stage), plan.params, store)
        verify = chain.stage(ENGINE_VERDICT.stage)
        # It is judged by the golden file alone: a target does not have the test set.
        alone = dataclasses.replace(verify, resolve=lambda params: params)
        asked = verify.params(**plan.fields, data=None, threads=threads, device=device)
        runner.run(alone, asked, store)
        verdict = from_json(read_json(plan.at(ENGINE_VERDICT)))
        low, high = outcome.params["batch_min"], outcome.params["batch_max"]
        subject = spread.Subject(
            plan.params.engine,
            plan.at(GOLDEN),
            plan.precision,
            (low, high),
            device,
            threads,
        )
        latency = spread.latencies(path, verdict, subject)
    build = regions.Build.of(path, outcome.record.seconds, verdict, latency)
    passed = plan.region is not None and verdict.status == "pass"
    return Rebuilt(
        plan.name,
        plan.precision,
        dataclasses.replace(verdict, subject=plan.name),
        build,
        plan.region,
        plan.region.outside(build) if plan.region is not None and passed else [],
        plan.region.slower(build) if plan.region is not None and passed else [],
        plan.at_home(verdict.facts.get("device", ""), threads),
        build.sha256 == before,
    )


def _named(rebuilt: Rebuilt, bundle: Path, root: Path) -> Rebuilt:
    """Returns the result with a reason that names members of the bundle."""
    reason = checking.renamed(rebuilt.verdict.reason, bundle, root)
    return dataclasses.replace(
        rebuilt,
        verdict=dataclasses.replace(rebuilt.verdict, reason=reason),
        build=dataclasses.replace(rebuilt.build, reason=reason),
    )


def _write(
    bundle: Path,
    built: Sequence[Planned],
    out: Path,
    max_bytes: int,
    trusted: signature.Trusted | None,
) -> None:
    """Writes a bundle of the new engines alone, and merges it with the other one."""
    stage = chain.stage(BUNDLE.stage)
    parts = []
    with temporary.folder() as folder:
        for number, root in enumerate(dict.fromkeys(plan.root for plan in built)):
            plans = [plan for plan in built if plan.root == root]
            params = stage.params(
                model=plans[0].params.model,
                precision=tuple(dict.fromkeys(plan.precision for plan in plans)),
                engine=tuple(dict.fromkeys(plan.params.engine for plan in plans)),
                measurements=False,
            )
            ours = {plan.at(ENGINE) for plan in plans}
            for precision, engine in itertools.product(params.precision, params.engine):
                fields = {"model": params.model, "precision": precision, "engine": engine}
                path = root / ENGINE.at(**fields).path
                if path not in ours:  # an old one that was not built again
                    shutil.rmtree(path.parent, ignore_errors=True)
            outcome = runner.run(stage, params, runner.Store(root, folder / str(number)))
            parts.append(outcome.outputs[BUNDLE])
        merging.merge([bundle, *parts], out, max_bytes, trusted=trusted, keep_equal=True)

"""Which engines of an unpacked bundle this machine can build again, and how."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import engines
from engines.errors import DeployError, NotAvailableError
from pipeline.bundling import checking
from pipeline.bundling import manifest as manifests
from pipeline.rebuilding import region as regions
from pipeline.rebuilding import spread
from pipeline.workflow import chain, console, records
from pipeline.workflow.artifacts import ENGINE, PROGRAM, Artifact, record_beside
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


def plans(
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
    chosen: list[Planned] = []
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
        chosen += [
            max(several, key=partial(_preference, threads=threads))
            for several in of_backend.values()
        ]
    if not chosen:
        raise none_built(reasons)
    return chosen


def _preference(plan: Planned, threads: int) -> tuple[bool, bool]:
    """Ranks engines of one backend: first one whose region is of a machine as this one."""
    if plan.builds is None or plan.region is None:
        return False, False
    return plan.at_home(plan.builds.device, threads), True


def none_built(errors: Sequence[DeployError]) -> NotAvailableError:
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


def line(plan: Planned, root: Path) -> str:
    """Returns what is built, from what and by what, for the question of trust."""
    engine = engines.get(plan.params.engine)
    what = "a program" if plan.source.name == PROGRAM.name else "a graph"
    return (
        f"{plan.source.relative_to(root)}: {what} from which {engine.module} builds"
        f" {plan.name}, and runs it"
    )

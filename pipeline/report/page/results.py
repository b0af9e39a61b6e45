"""Reads all that is known about a model: verified outputs of its stages, their records, gaps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines.errors import DeployError
from exporters import PRECISIONS
from pipeline import models
from pipeline.workflow import hints
from pipeline.workflow.artifacts import (
    BUNDLE,
    CHECKPOINT,
    COMPARISON,
    COSTS,
    DESCRIPTION,
    ENGINE,
    ENGINE_BUILDS,
    ENGINE_LAYERS,
    ENGINE_VERDICT,
    GOLDEN,
    GRAPH,
    GRAPH_SUBJECT,
    GRAPH_VERDICT,
    LOAD,
    MEASUREMENTS,
    SWEEP,
    TRAINING,
    Artifact,
    Paths,
    failure_report,
)
from pipeline.workflow.digests import read_json
from pipeline.workflow.records import Record, RecordVerifier, load

if TYPE_CHECKING:
    from pipeline.rebuilding.region import Builds
    from pipeline.verification.verdict import Verdict
    from pipeline.workflow.runner import Store

# What a damaged file, or one of another version, makes of code that expects this version's.
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)


@dataclass(frozen=True)
class Gap:
    """Something that the report would show, and that is missing, damaged or out of date.

    Attributes:
        problem: What is wrong, in words.
        hint: What to do about it.
    """

    problem: str
    hint: str


def unreadable(part: str, error: Exception, model: str, place: hints.Place) -> Gap:
    """Returns the gap for a part of a report whose files have another form than this version's."""
    return Gap(
        f"{part} is left out, since its files have not the form that this version of assay writes"
        f" ({type(error).__name__}: {error})",
        hints.complete(f"run `{hints.command('run', {'model': model})} --force`", place),
    )


@dataclass(frozen=True)
class File:
    """A file that a stage made, whose digest has been compared with its record.

    Attributes:
        precision: "" if it belongs to no precision.
        engine: "" if it belongs to no engine.
        size: In bytes.
    """

    label: str
    kind: str
    precision: str
    engine: str
    size: int
    sha256: str


@dataclass(frozen=True)
class PrecisionResults:
    """What is known about a model at one precision; what is missing is None or empty.

    Attributes:
        graph: The content of `graph.json`.
        verdicts: Verdicts by subject: "graph" or an engine.
        layers: The content of an engine's `layers.json`, by engine.
        measurements: The content of `measurements.json`.
        comparison: The content of `comparison.json`: engines of several precisions.
        costs: The content of `costs.json`.
        load: The content of `served.json`.
        bundle: Path of the bundle.
        builds: How several builds differ, by engine.
    """

    name: str
    graph: dict[str, Any] | None
    verdicts: dict[str, Verdict]
    layers: dict[str, dict[str, Any]]
    measurements: dict[str, Any] | None
    comparison: dict[str, Any] | None
    costs: dict[str, Any] | None
    load: dict[str, Any] | None
    bundle: Path | None
    builds: dict[str, Builds] = field(default_factory=dict)


@dataclass(frozen=True)
class Results:
    """All that is known about a model.

    Attributes:
        training: The content of `training.json`; None if it is missing, or the model is an ONNX
            file.
        precisions: Results by precision, in the order of the table of precisions.
        sweep: The content of `frontier.json`; None if it is missing.
        files: Verified files.
        records: The records of all files and of what they were made from, by path.
        gaps: What is missing.
    """

    model: str
    training: dict[str, Any] | None
    precisions: tuple[PrecisionResults, ...]
    sweep: dict[str, Any] | None
    files: tuple[File, ...]
    records: dict[str, Record]
    gaps: tuple[Gap, ...]


def collect(model: str, precisions: Sequence[str], store: Store) -> Results:
    """Reads a model's results.

    Args:
        precisions: Names of the precisions to read; () means all that were exported.

    Raises:
        DeployError: No stage has run for this model yet.
    """
    reader = _Reader(model, store)
    known = [name for name in PRECISIONS if _has_results(reader, name)]
    trained = models.graph_file(model) is None
    reader.note_failure(TRAINING)
    training = reader.read(TRAINING) if trained else None
    if trained:
        reader.verify(CHECKPOINT)
    chosen = [name for name in PRECISIONS if name in (precisions or known)]
    sweep = reader.read(SWEEP) if reader.exists(SWEEP) else None
    elsewhere = _measured_beside_others(reader, chosen, sweep)
    parts = tuple(_at(reader, name, measured=name in elsewhere) for name in chosen)
    if not reader.records:
        words = " --precision ".join([model, *precisions[:1]])
        raise DeployError(
            f"{store.root} has no results of {model} yet",
            hints.complete(f"run `assay run {words}`", store.place),
        )
    if not chosen:
        reader.missing(GRAPH, next(iter(PRECISIONS)))
    return Results(
        model=model,
        training=training,
        precisions=parts,
        sweep=sweep,
        files=tuple(reader.files),
        records=dict(sorted(reader.records.items())),
        gaps=tuple(dict.fromkeys(reader.gaps)),
    )


def _has_results(reader: _Reader, precision: str) -> bool:
    return (reader.root / GRAPH.at(model=reader.model, precision=precision).record).exists()


def _measured_beside_others(
    reader: _Reader, precisions: Sequence[str], sweep: dict[str, Any] | None
) -> set[str]:
    """Returns the precisions that were measured in a comparison of several, or in a sweep."""
    words: list[str] = []
    with suppress(*UNREADABLE):  # the section that shows it says so
        words += [str(point["precision"]) for point in sweep["points"]] if sweep else []
        for precision in precisions:
            if reader.exists(COMPARISON, precision):
                comparison = reader.read(COMPARISON, precision) or {"results": ()}
                for entry in comparison["results"]:
                    own = PRECISIONS.keys() & entry["name"].split()
                    words += own or [precision]
    return PRECISIONS.keys() & words


def _at(reader: _Reader, precision: str, *, measured: bool) -> PrecisionResults:
    """Reads one precision's results; notes the first stage that is missing for each of them.

    Args:
        measured: It was measured beside others, so that nothing is missing without measurements of
            its own.
    """
    graph = reader.read(DESCRIPTION, precision)
    if graph is None:
        return PrecisionResults(precision, None, {}, {}, None, None, None, None, None)
    reader.verify(GRAPH, precision)
    reader.verify(GOLDEN, precision)
    built = [name for name in engines.names() if reader.exists(ENGINE, precision, name)]
    for name in engines.names():
        reader.note_failure(ENGINE, precision, name)
        reader.note_failure(ENGINE_VERDICT, precision, name)
    for artifact in (DESCRIPTION, GRAPH_VERDICT, MEASUREMENTS, BUNDLE):
        reader.note_failure(artifact, precision)
    subjects = {GRAPH_SUBJECT: GRAPH_VERDICT} | dict.fromkeys(built, ENGINE_VERDICT)
    verdicts = {}
    for name, artifact in subjects.items():
        if name != GRAPH_SUBJECT and reader.verify(ENGINE, precision, name) is None:
            continue
        verdict = reader.verdict(artifact, precision, name)
        if verdict is not None:
            verdicts[name] = verdict
    layers = {name: reader.read(ENGINE_LAYERS, precision, name) for name in built}
    if not built:
        reader.missing(ENGINE, precision, "all")
    # `assay run` makes none of them, so that nothing is missing without.
    comparison, costs, served = (
        reader.read(artifact, precision) if reader.exists(artifact, precision) else None
        for artifact in (COMPARISON, COSTS, LOAD)
    )
    return PrecisionResults(
        name=precision,
        graph=graph,
        verdicts=verdicts,
        layers={name: content for name, content in layers.items() if content is not None},
        measurements=reader.read(MEASUREMENTS, precision)
        if built and (reader.exists(MEASUREMENTS, precision) or not measured)
        else None,
        comparison=comparison,
        costs=costs,
        load=served,
        bundle=reader.verify(BUNDLE, precision) if built else None,
        builds={
            name: builds for name in built if (builds := reader.builds(precision, name)) is not None
        },
    )


@dataclass
class _Reader:
    """Reads artifacts of a model, and notes those that cannot be used."""

    model: str
    store: Store
    files: list[File] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.store.root

    def _paths(self, artifact: Artifact, precision: str, engine: str) -> tuple[Artifact, Paths]:
        fields = {"model": self.model, "precision": precision, "engine": engine}
        filled = artifact.at(**{name: value for name, value in fields.items() if value})
        return filled, Paths(self.root, self.store.dist, {"model": self.model}, (filled,))

    def exists(self, artifact: Artifact, precision: str = "", engine: str = "") -> bool:
        """Whether the file or its record is there."""
        filled, paths = self._paths(artifact, precision, engine)
        return paths.locate(filled).exists() or (self.root / filled.record).exists()

    def missing(self, artifact: Artifact, precision: str = "", engine: str = "") -> None:
        """Notes that an artifact is not there."""
        filled, _ = self._paths(artifact, precision, engine)
        place = f" in {precision}" if precision else ""
        who = f" of {engine}" if engine in engines.names() else ""
        self.gap(f"no {artifact.kind}{who}{place}", f"run `{hints.making(filled, {})}`")

    def gap(self, problem: str, hint: str) -> None:
        self.gaps.append(Gap(problem, hints.complete(hint, self.store.place)))

    def verify(self, artifact: Artifact, precision: str = "", engine: str = "") -> Path | None:
        """Returns the path of an artifact that is up to date; else notes what is wrong with it."""
        filled, paths = self._paths(artifact, precision, engine)
        path = paths.locate(filled)
        if not self.exists(artifact, precision, engine):
            self.missing(artifact, precision, engine)
            return None
        self._read_records([filled.record])
        try:
            digest = RecordVerifier(self.root).digest(filled, paths, {"model": self.model})
            size = path.stat().st_size
        except DeployError as error:
            self.gap(error.message, error.hint)
            return None
        except OSError as error:
            self.gap(f"{path} cannot be read: {error}", "check its permissions")
            return None
        entry = File(filled.label, artifact.kind, precision, engine, size, digest)
        if entry not in self.files:
            self.files.append(entry)
        return path

    def read(self, artifact: Artifact, precision: str = "", engine: str = "") -> Any | None:
        """Returns the content of a JSON file that is up to date; None otherwise."""
        path = self.verify(artifact, precision, engine)
        if path is None:
            return None
        try:
            content = read_json(path)
        except DeployError as error:
            self.gap(error.message, error.hint)
            return None
        if isinstance(content, dict):
            return content
        self.foreign(artifact, path, precision, engine)
        return None

    def verdict(self, artifact: Artifact, precision: str, engine: str) -> Verdict | None:
        """Returns a verdict that is up to date; None otherwise."""
        from pipeline.verification.verdict import from_json

        named = "" if engine == GRAPH_SUBJECT else engine
        content = self.read(artifact, precision, named)
        if content is None:
            return None
        try:
            return from_json(content)
        except UNREADABLE:
            self.foreign(artifact, self._locate(artifact, precision, named), precision, named)
            return None

    def builds(self, precision: str, engine: str) -> Builds | None:
        """Returns how several builds of an engine differ; None if it was built once."""
        from pipeline.rebuilding import region

        if not self._locate(ENGINE_BUILDS, precision, engine).exists():
            return None
        path = self.verify(ENGINE_BUILDS, precision, engine)
        try:
            return None if path is None else region.load(path)
        except DeployError as error:
            self.gap(error.message, error.hint)
            return None

    def _locate(self, artifact: Artifact, precision: str, engine: str) -> Path:
        filled, paths = self._paths(artifact, precision, engine)
        return paths.locate(filled)

    def foreign(self, artifact: Artifact, path: Path, precision: str, engine: str) -> None:
        """Notes a file whose content another version of assay has written."""
        filled, _ = self._paths(artifact, precision, engine)
        self.gap(
            f"{path} has not the form that this version of assay writes",
            f"run `{hints.making(filled, {})} --force`",
        )

    def note_failure(self, artifact: Artifact, precision: str = "", engine: str = "") -> None:
        """Notes that the last run of a stage failed."""
        filled, _ = self._paths(artifact, precision, engine)
        record = self.root / filled.record
        report = failure_report(record)
        if report.exists():
            self.gap(
                f"{filled.stage} failed; what it printed is in {report}",
                f"run `{hints.making(filled, {})}`",
            )

    def _read_records(self, paths: Iterable[str]) -> None:
        """Reads records and those of all inputs; damaged ones are noted by `verify`."""
        todo = [path for path in paths if path not in self.records]
        while todo:
            path = todo.pop()
            try:
                record = load(self.root / path)
            except DeployError:
                continue
            if record is not None:
                self.records[path] = record
                inputs = {entry["record"] for entry in record.inputs.values()}
                todo += sorted(inputs - self.records.keys())

"""The report of `assay report` and `assay run`: accuracy, verdicts, latency and bundle."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import engines
from engines.errors import DeployError
from exporters import DEFAULT_PRECISION
from pipeline.rebuilding import region
from pipeline.report import repeated, train
from pipeline.report.bench import UNSETTLED, doubts, load_of
from pipeline.report.units import duration
from pipeline.report.verify import deviating_type, limits_of, ratio_text, rows_not_compared
from pipeline.workflow import console, hints
from pipeline.workflow.artifacts import (
    BUNDLE,
    ENGINE_BUILDS,
    ENGINE_VERDICT,
    GRAPH_SUBJECT,
    GRAPH_VERDICT,
    MEASUREMENTS,
    TRAINING,
    Artifact,
    Paths,
)
from pipeline.workflow.digests import read_json
from pipeline.workflow.records import RecordVerifier
from pipeline.workflow.runner import Store


@dataclass(frozen=True)
class Summary:
    """The results of a model at one precision; those that are missing are None.

    Attributes:
        training: The content of `training.json`, with the test accuracy.
        verdicts: JSON verdicts by subject: "graph" or an engine.
        measurements: The content of `measurements.json`.
        builds: How several builds differ, by engine; see `assay build --repeat`.
        bundle: Path of the bundle.
        notes: Messages about files that are left out because they are damaged or out of date.
    """

    model: str
    precision: str
    training: dict[str, Any] | None
    verdicts: dict[str, dict[str, Any]]
    measurements: dict[str, Any] | None
    builds: dict[str, region.Builds]
    bundle: str | None
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Returns the JSON form."""
        return dataclasses.asdict(self)


def collect(model: str, precision: str, store: Store) -> Summary:
    """Reads a model's results from the store.

    Raises:
        DeployError: No stage has run for this model yet.
    """
    fields = {"model": model, "precision": precision}
    left_out: dict[str, list[str]] = {}  # paths by the reason

    def verified_path(artifact: Artifact) -> Path | None:
        filled = artifact.at(**fields)
        paths = Paths(store.root, store.dist, fields, (filled,))
        path = paths.locate(filled)
        if not path.exists():
            return None
        try:
            RecordVerifier(store.root).digest(filled, paths, fields)
        except DeployError as error:
            what = error.message
            for name in (filled.label, str(path)):
                if what.startswith(f"{name} is "):
                    what = f"it{what.removeprefix(name)}"
            reason = f"{what}; {hints.complete(error.hint, store.place)}"
            left_out.setdefault(reason, []).append(str(path))
            return None
        except OSError as error:
            left_out.setdefault(str(error), []).append(str(path))
            return None
        return path

    def read(artifact: Artifact) -> Any | None:
        path = verified_path(artifact)
        return None if path is None else read_json(path)

    subjects = {GRAPH_SUBJECT: GRAPH_VERDICT}
    subjects |= {name: ENGINE_VERDICT.at(engine=name) for name in engines.names()}
    verdicts = {name: read(artifact) for name, artifact in subjects.items()}
    paths = {name: verified_path(ENGINE_BUILDS.at(engine=name)) for name in engines.names()}
    builds = {name: region.load(path) for name, path in paths.items() if path is not None}
    bundle = verified_path(BUNDLE)
    notes = [
        f"{', '.join(paths)} {'are' if len(paths) > 1 else 'is'} left out: {reason}"
        for reason, paths in left_out.items()
    ]
    summary = Summary(
        model=model,
        precision=precision,
        training=read(TRAINING),
        verdicts={name: verdict for name, verdict in verdicts.items() if verdict is not None},
        measurements=read(MEASUREMENTS),
        builds=builds,
        bundle=None if bundle is None else str(bundle),
        notes=tuple(notes),
    )
    words = model if precision == DEFAULT_PRECISION else f"{model} --precision {precision}"
    if summary.training is None and not summary.verdicts and not notes:
        raise DeployError(
            f"{store.root} has no results of {model} yet",
            hints.complete(f"run `assay run {words}`", store.place),
        )
    return summary


def show(summary: Summary) -> None:
    """Prints the accuracy, a row for each engine, and the bundle's path."""
    if summary.training is not None:
        train.show(summary.model, summary.training)
    batches = [*dict.fromkeys(load_of(entry) for entry in _results(summary))]
    columns = ["engine", "verdict", ">error x floor", ">flips", ">top-1"]
    deviating = {
        name: deviating_type(verdict["facts"], summary.precision)
        for name, verdict in summary.verdicts.items()
    }
    if any(deviating.values()):
        columns.append("computed in")
    columns += [f">batch {batch}{size and f' at {size}'}" for batch, size in batches]
    rows = [
        [
            name,
            *_verdict_cells(verdict),
            *([verdict["facts"].get("computed in", "")] if any(deviating.values()) else []),
            *(_latency(summary, name, load) for load in batches),
        ]
        for name, verdict in summary.verdicts.items()
    ]
    title = f"{summary.model}, {summary.precision}: end-to-end latency"
    if rows:
        console.table(title, columns, rows, (">flips", ">error x floor"))
    if summary.measurements:
        for sentence in doubts(summary.measurements):
            console.result(sentence)
    for name, verdict in summary.verdicts.items():
        if verdict["status"] == "not run":
            console.result(f"{name}: not run on this machine: {verdict['reason']}")
        elif verdict["reason"]:
            console.result(f"{name}: {verdict['status']}: {verdict['reason']}")
        for sentence in limits_of(verdict):
            console.result(sentence)
        for output in verdict["outputs"]:
            for sentence in rows_not_compared(name, summary.precision, output):
                console.result(sentence)
    lines = [repeated.line(name, builds) for name, builds in summary.builds.items()]
    for line in (*lines, *summary.notes):
        console.result(line)
    console.result(f"bundle: {summary.bundle or 'none up to date'}")


def _verdict_cells(verdict: dict[str, Any]) -> list[str]:
    outputs, flips = verdict["outputs"], verdict["flips"]
    known = flips and flips["correct"] is not None
    ratios = [output["rms_ratio"] for output in outputs]
    return [
        verdict["status"],
        ratio_text(max(ratios)) if ratios else "",
        f"{flips['unexplained'] + flips['explained']}" if flips else "",
        f"{flips['correct'] / flips['images']:.2%}" if known else "",
    ]


def _results(summary: Summary) -> list[dict[str, Any]]:
    return summary.measurements["results"] if summary.measurements else []


def _latency(summary: Summary, name: str, load: tuple[int, str]) -> str:
    for entry in _results(summary):
        if (entry["name"], load_of(entry), entry["boundary"]) == (name, load, "end to end"):
            return duration(entry["seconds"]["value"]) + ("" if entry["settled"] else UNSETTLED)
    return ""

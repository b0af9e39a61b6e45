"""Sections about speed: what to deploy, latency, and latency against throughput."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.report import bench
from pipeline.report.page import choice, figures
from pipeline.report.page.choice import Candidate
from pipeline.report.page.content import Cell, Figure, Section, Table, table
from pipeline.report.page.results import Results
from pipeline.report.sweep import CREW
from pipeline.report.units import duration

# The fields of a result and of a file of measurements that have columns or sections of their own.
_RESULT = frozenset(
    {
        *("name", "batch", "size", "boundary", "baseline", "seconds", "ratio", "rounds"),
        *("iterations", "percentiles", "settled", "busy", "waiting", "others"),
        *("bound", "enqueue_seconds"),
    }
)
_FILE = frozenset({"baseline", "counted", "devices", "failures", "machine", "results"})


def deploy(results: Results) -> Section | None:
    """Returns what to deploy, for each goal, and why."""
    choices = choice.choose(results.model, choice.current(results))
    if not choices:
        return None
    rows = [
        (
            Cell(f"lowest {entry.goal}" if entry.goal == "latency" else f"highest {entry.goal}"),
            Cell(entry.candidate.engine, status="good"),
            entry.candidate.precision,
            entry.candidate.device,
            f"{entry.candidate.batch}",
            entry.candidate.size,
            f"{entry.candidate.sessions} x {entry.candidate.threads}"
            if entry.candidate.served
            else "",
            duration(entry.candidate.seconds),
            f"{duration(entry.candidate.low)} to {duration(entry.candidate.high)}",
            f"{entry.candidate.rate:,.0f}",
            "" if entry.candidate.accuracy is None else f"{entry.candidate.accuracy:.2%}",
        )
        for entry in choices
    ]
    columns = (
        *("for", "engine", "precision", "device", ">batch", "size", CREW, ">latency"),
        *(">95 % interval", f">{choices[0].candidate.counted}/s", ">top-1"),
    )
    bundles = [
        (
            part.name,
            Cell(str(part.bundle), code=True),
            ", ".join(name for name, verdict in part.verdicts.items() if verdict.status == "pass"),
            f"`{_check(part.bundle)}`",
        )
        for part in results.precisions
        if part.bundle is not None
    ]
    tables = [table("Choice", columns, rows)]
    if bundles:
        titles = ("precision", "bundle", "proved here", "to prove it on the target")
        tables.append(table("Bundles", titles, bundles))
    return Section(
        "deploy",
        "What to deploy",
        tuple(
            f"For {entry.goal}: {' '.join((*entry.reasons, *entry.doubts))}" for entry in choices
        ),
        tables=tuple(tables),
    )


def _check(bundle: Path) -> str:
    return f"assay check {shlex.quote(str(bundle))}"


def latency(results: Results) -> Section | None:
    """Returns the latency of all engines, with intervals, and every number that was measured."""
    known = choice.candidates(results)
    drawn: list[Figure] = []
    tables: list[Table] = []
    remarks: list[str] = []
    for number, (run, _, measurements) in enumerate(choice.runs(results.precisions), 1):
        points = [point for point in known if point.run == run]
        if points:
            words = "; ".join(_fastest(points))
            drawn.append(figures.latency(f"{number}", f"Latency in {run}", points, words))
        title, columns, rows = bench.table(measurements)
        tables.append(table(f"{title}, in {run}", columns, rows))
        tables.append(_every_number(f"All measurements in {run}", measurements["results"]))
        tables.append(_percentiles(f"Percentiles in {run}", measurements["results"]))
        tables += _other_numbers(measurements, run)
        remarks += bench.doubts(measurements)
        remarks += bench.bounds(measurements["results"])
    if not tables:
        return None
    return Section(
        "latency",
        "Latency",
        sentences=(
            "Medians with 95 % intervals. Engines of one table were measured side by side in random"
            " order; numbers of different tables are of different times. End to end is from arrays"
            " on the host to arrays on the host.",
        ),
        figures=tuple(drawn),
        tables=tuple(tables),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _fastest(points: Sequence[Candidate]) -> Iterable[str]:
    for batch, size in choice.loads(points):
        best = min(
            (point for point in points if (point.batch, point.size) == (batch, size)),
            key=lambda point: point.seconds,
        )
        where = f"batch {batch}" + (f" at {size}" if size else "")
        yield f"At {where}, {best.engine} is the fastest, with {duration(best.seconds)}"


def _every_number(title: str, entries: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table with a row for each result and a column for each of its fields."""
    others = sorted(
        {
            name
            for entry in entries
            for name, value in entry.items()
            if name not in _RESULT and _is_plain(value)
        }
    )
    rows = [
        (
            entry["name"],
            f"{entry['batch']}",
            entry.get("size", ""),
            entry["boundary"],
            duration(entry["seconds"]["value"]),
            duration(entry["seconds"]["low"]),
            duration(entry["seconds"]["high"]),
            _ratio(entry),
            f"{entry['rounds']:,}",
            f"{entry['iterations']:,}",
            plain(entry["settled"]),
            plain(entry["busy"]),
            f"{entry['waiting']:.3f}",
            "" if entry["others"] is None else f"{entry['others']:.1%}",
            entry.get("bound", ""),
            duration(entry["enqueue_seconds"]) if "enqueue_seconds" in entry else "",
            *(plain(entry.get(name, "")) for name in others),
        )
        for entry in entries
    ]
    columns = (
        *("engine", ">batch", "size", "boundary", ">median", ">low", ">high"),
        *(">ratio", ">rounds", ">iterations", "settled", "busy", ">waiting s/s", ">others"),
        *("bound by", ">enqueue"),
        *(f">{name.replace('_', ' ')}" for name in others),
    )
    return table(title, columns, rows, folded=True)


def _percentiles(title: str, entries: Sequence[Mapping[str, Any]]) -> Table:
    """Returns a table with a row for each result and a column for each percentile."""
    names = [*dict.fromkeys(name for entry in entries for name in entry["percentiles"])]
    rows = [
        (
            entry["name"],
            f"{entry['batch']}",
            entry.get("size", ""),
            entry["boundary"],
            *(
                _interval(entry["percentiles"][name]) if name in entry["percentiles"] else ""
                for name in names
            ),
        )
        for entry in entries
    ]
    columns = ("engine", ">batch", "size", "boundary", *(f">{name}" for name in names))
    return table(title, columns, rows, folded=True)


def _interval(seconds: Mapping[str, float]) -> str:
    value, low, high = (duration(seconds[name]) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _ratio(entry: Mapping[str, Any]) -> str:
    if entry["name"] == entry.get("baseline"):
        return ""
    return "{value:.3f} ({low:.3f}-{high:.3f})".format(**entry["ratio"])


def _other_numbers(measurements: Mapping[str, Any], run: str) -> Iterable[Table]:
    """Returns a table for each list of measurements that has no section of its own."""
    for name, content in sorted(measurements.items()):
        if name in _FILE or not isinstance(content, list) or not content:
            continue
        if not all(isinstance(entry, dict) for entry in content):
            continue
        columns = [*dict.fromkeys(key for e in content for key, v in e.items() if _is_plain(v))]
        rows = [[plain(entry.get(key, "")) for key in columns] for entry in content]
        titles = [
            f">{key}".replace("_", " ") if _is_number(content[0].get(key)) else key
            for key in columns
        ]
        yield table(f"{name.replace('_', ' ').capitalize()} in {run}", titles, rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | int | float)


def plain(value: Any) -> str:
    """Returns a JSON value that is neither a list nor an object, as text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.6g}" if isinstance(value, float) else f"{value}"


def trade_off(results: Results) -> Section | None:
    """Returns latency against throughput, and which engines and batches are on the frontier."""
    known = choice.candidates(results)
    drawn: list[Figure] = []
    tables: list[Table] = []
    names = [choice.SWEEP, *(run for run, _, _ in choice.runs(results.precisions))]
    sizes = dict.fromkeys(point.size for point in known)
    pairs = [(run, size) for run in names for size in sizes]
    for number, (run, size) in enumerate(pairs, 1):
        points = [point for point in known if (point.run, point.size) == (run, size)]
        if not points:
            continue
        best, counted = choice.frontier(points), points[0].counted
        where = f"{run} at {size}" if size else run
        words = "On the frontier, from the lowest latency: " + "; ".join(
            f"{p.name} at batch {p.batch}, {duration(p.seconds)}, {p.rate:,.0f} {p.counted}/s"
            for p in best
        )
        title = f"Latency against throughput in {where}"
        drawn.append(figures.trade_off(f"{number}", title, points, best, words))
        rows = [
            (
                point.engine,
                point.precision,
                f"{point.batch}",
                f"{point.sessions} x {point.threads}" if point.served else "",
                duration(point.seconds),
                f"{point.rate:,.0f}",
                Cell("yes", status="good") if point in best else "",
            )
            for point in sorted(points, key=lambda entry: entry.seconds)
        ]
        columns = (
            *("engine", "precision", ">batch", CREW, ">latency"),
            *(f">{counted}/s", "on the frontier"),
        )
        tables.append(table(title, columns, rows, folded=True))
    if not drawn:
        return None
    return Section(
        "frontier",
        "Latency against throughput",
        sentences=(
            "One inference at a time; in the sweep, as many as there are sessions (2x1: two"
            " sessions of one thread). On the frontier (the broad line, with its batch sizes), no"
            " other engine or batch has both less latency and more throughput.",
        ),
        figures=tuple(drawn),
        tables=tuple(tables),
    )

"""The printed report of the sweep stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.benchmarking.contention import NOTICEABLE
from pipeline.report.units import duration
from pipeline.workflow import console

# Left out in this order where the terminal is narrow.
_OPTIONAL = (">top-1", "device", ">95 % interval", ">p99")
# Title of the column of numbers of sessions and of threads of each.
CREW = ">sessions x threads"


def named(point: Mapping[str, Any]) -> str:
    """Returns a way to run a model in words."""
    threads, sessions = point["threads"], point["sessions"]
    return (
        f"{point['engine']} in {point['precision']}, batch {point['batch']},"
        f" {sessions} session{'s' * (sessions > 1)} of {threads} thread{'s' * (threads > 1)}"
    )


def failures(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the ways that failed."""
    return [point for point in results["points"] if point["failure"]]


def show(results: Mapping[str, Any]) -> None:
    """Prints the ways that nothing beats, from the quickest, and how many were beaten."""
    points = results["points"]
    left = [point for point in points if not point["beaten_by"] and not point["failure"]]
    left.sort(key=lambda point: float(point["latency"]["value"]))
    columns = ["engine", "precision", "device", ">batch", CREW, ">latency"]
    columns += [">95 % interval", ">p99", f">{results['counted']}/s served", ">top-1"]
    title = "Not surely beaten in both latency and throughput"
    console.table(title, columns, _rows(left), _OPTIONAL)
    for point in failures(results):
        console.result(f"{named(point)} failed: {point['failure']}")
    others = results["others"] or 0.0
    if others > NOTICEABLE:
        console.result(
            f"other processes took {others:.0%} of the CPUs; on a quiet machine more ways can be"
            " told apart"
        )
    beaten = sum(bool(point["beaten_by"]) for point in points)
    if beaten:
        console.result(
            f"{beaten} of {len(points)} ways dropped out: another is surely quicker, serves more"
            " and is not less accurate"
        )


def _rows(points: list[Mapping[str, Any]]) -> list[list[str]]:
    """Returns a row of cells for each way."""
    return [
        [
            point["engine"],
            point["precision"],
            point["device"],
            f"{point['batch']}",
            f"{point['sessions']} x {point['threads']}",
            duration(point["latency"]["value"]),
            f"{duration(point['latency']['low'])} to {duration(point['latency']['high'])}",
            duration(point["percentiles"]["p99"]["value"]) if "p99" in point["percentiles"] else "",
            f"{point['throughput']['value']:,.0f}",
            "" if point["accuracy"] is None else f"{point['accuracy']:.2%}",
        ]
        for point in points
    ]

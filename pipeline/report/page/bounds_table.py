"""The printed report of `assay choose`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.bench import UNSETTLED
from pipeline.report.page.bounds import Bounds, Kept, wish
from pipeline.report.page.choice import Candidate
from pipeline.report.sweep import CREW
from pipeline.report.units import duration
from pipeline.workflow import console

_ORDER = {"yes": 0, "unsure": 1, "no": 2}
_WHY = "which not, or not surely"


def show(compared: Sequence[Kept], best: Kept | None, other: Kept | None, bounds: Bounds) -> None:
    """Prints a row for each engine and batch size, those that keep the bounds first.

    Args:
        other: What is better than the best, and may keep the bounds.
    """
    ranked = sorted(compared, key=lambda entry: (_ORDER[entry.status], entry.candidate.seconds))
    sizes = {entry.candidate.size for entry in compared}
    several = any(entry.candidate.served for entry in compared)
    rows = [
        [
            entry.candidate.engine,
            entry.candidate.precision,
            f"{entry.candidate.batch}",
            entry.candidate.size if len(sizes) > 1 else "",
            f"{entry.candidate.sessions} x {entry.candidate.threads}" if several else "",
            duration(entry.candidate.seconds) + ("" if entry.candidate.settled else UNSETTLED),
            _p99(entry.candidate),
            f"{entry.candidate.rate:,.0f}",
            "" if entry.candidate.accuracy is None else f"{entry.candidate.accuracy:.2%}",
            entry.status,
            "; ".join(entry.failing),
        ]
        for entry in ranked
    ]
    rate = f">{compared[0].candidate.counted}/s"
    columns = ["engine", "precision", ">batch", "size", CREW, ">end to end", ">p99", rate]
    columns += [">top-1", "kept", _WHY]
    # What a bound is on stays longest.
    asked = {
        ">end to end": bounds.latency,
        ">p99": bounds.p99,
        rate: bounds.throughput,
        ">top-1": bounds.drop,
    }
    optional = sorted(asked, key=lambda column: asked[column] is not None)
    console.table("Bounds", columns, rows, (_WHY, *optional))
    if best is not None:
        console.result(_chosen(best.candidate, bounds))
    if other is not None:
        console.result(_not_sure(other, bounds))


def _p99(one: Candidate) -> str:
    return "" if one.p99 is None else f"{duration(one.p99[0])} to {duration(one.p99[1])}"


def _not_sure(entry: Kept, bounds: Bounds) -> str:
    one = entry.candidate
    return (
        f"{one.name} at batch {one.batch}, {one.crew}, {wish(bounds)}, and may keep the bounds:"
        f" {'; '.join(entry.failing)}; more --budget narrows an interval"
    )


def _of(size: str) -> str:
    return f" of {size}" if size else ""


def _chosen(one: Candidate, bounds: Bounds) -> str:
    facts = [
        f"{duration(one.seconds)} ({duration(one.low)} to {duration(one.high)}) end to end",
        *([f"p99 {_p99(one)}"] if bounds.p99 is not None else []),
        f"{one.rate:,.0f} {one.counted}/s",
        *([f"top-1 {one.accuracy:.2%}"] if bounds.drop is not None and one.accuracy else []),
    ]
    return (
        f"chosen: {one.name} at batch {one.batch}{_of(one.size)} on {one.device},"
        f" {one.crew}: {', '.join(facts)}; proved on this machine"
    )

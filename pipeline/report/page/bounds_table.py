"""The printed report of `assay choose`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.report.page.bounds import Kept
from pipeline.report.units import duration
from pipeline.workflow import console

_ORDER = {"yes": 0, "unsure": 1, "no": 2}


def show(compared: Sequence[Kept], best: Kept | None) -> None:
    """Prints a row for each engine and batch size, those that keep the bounds first."""
    ranked = sorted(compared, key=lambda entry: (_ORDER[entry.status], entry.candidate.seconds))
    sizes = {entry.candidate.size for entry in compared}
    several = any(entry.candidate.served for entry in compared)
    rows = []
    for entry in ranked:
        one = entry.candidate
        p99 = "" if one.p99 is None else f"{duration(one.p99[0])} to {duration(one.p99[1])}"
        rows.append(
            [
                one.engine,
                one.precision,
                f"{one.batch}",
                one.size if len(sizes) > 1 else "",
                f"{one.sessions}" if several else "",
                f"{one.threads}" if several else "",
                duration(one.seconds),
                p99,
                f"{one.rate:,.0f}",
                "" if one.accuracy is None else f"{one.accuracy:.2%}",
                entry.status,
                "; ".join(entry.failing),
            ]
        )
    counted = compared[0].candidate.counted
    columns = (
        *(
            "engine",
            "precision",
            ">batch",
            "size",
            ">sessions",
            ">threads",
            ">end to end",
            ">p99",
            f">{counted}/s",
        ),
        *(">top-1", "kept", "which not, or not surely"),
    )
    console.table("Bounds", columns, rows, (">top-1", ">p99"))
    if best is not None:
        one = best.candidate
        console.result(
            f"chosen: {one.engine} in {one.precision} at batch {one.batch} on {one.device},"
            f" {one.crew}:"
            f" {duration(one.seconds)} ({duration(one.low)} to {duration(one.high)}) end to end,"
            f" {one.rate:,.0f} {one.counted}/s; proved on this machine"
        )

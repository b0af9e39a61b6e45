"""Sections about what engines cost, and how near they come to what the machine can do."""

from __future__ import annotations

from pipeline.report import profile
from pipeline.report.page.content import Section, table
from pipeline.report.page.results import Results


def costs(results: Results) -> Section | None:
    """Returns the start, the memory and the cost of an inference of each engine."""
    tables, remarks = [], []
    for part in results.precisions:
        if part.costs is None:
            continue
        for make in (profile.cold_start, profile.costs):
            title, columns, rows = make(part.costs)
            tables.append(table(f"{title}, in {part.name}", columns, rows))
        remarks += profile.cautions(part.costs)
    if not tables:
        return None
    return Section(
        "costs",
        "What it costs",
        sentences=(
            "Each engine in a process of its own. CPU time is of all its threads; memory is that of"
            " the process, with Python and the library.",
        ),
        tables=tuple(tables),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def roofline(results: Results) -> Section | None:
    """Returns what engines reach of what is attainable on the machine."""
    tables, remarks = [], []
    for part in results.precisions:
        if part.costs is None:
            continue
        title, columns, rows = profile.roofline(part.costs)
        if rows:
            tables.append(table(f"{title}, in {part.name}", columns, rows))
        remarks += [*profile.peaks(part.costs), *profile.losses(part.costs)]
    if not tables:
        return None
    return Section(
        "roofline",
        "How near to what the machine can do",
        sentences=(
            "The attainable is the least of two bounds (roofline model): how fast the machine"
            " multiplies, and how fast it moves the weights, inputs and outputs. Both were measured"
            " in the same rounds as the engine.",
        ),
        tables=tuple(tables),
        remarks=tuple(remarks),
    )

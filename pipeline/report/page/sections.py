"""The sections of a page, in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report.page import costs, origin, proof, speed, under_load
from pipeline.report.page.content import Section, table
from pipeline.report.page.results import UNREADABLE, Gap, Results, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.workflow.hints import Place

# Each makes one section, or none if the results lack what it shows.
_SECTIONS: dict[str, Callable[[Results], Section | None]] = {
    "what to deploy": speed.deploy,
    "verdicts": proof.verdicts,
    "latency": speed.latency,
    "latency against throughput": speed.trade_off,
    "load": under_load.load,
    "cost": costs.costs,
    "what the machine can do": costs.roofline,
    "error against the noise floor": proof.noise,
    "several builds": proof.builds,
    "training": origin.training,
    "layers": origin.layers,
    "memory and sizes": origin.sizes,
    "environment": origin.environment,
    "provenance": origin.provenance,
}


@dataclass(frozen=True)
class Page:
    """The content of a report.

    Attributes:
        sections: What is known.
        gaps: What is missing, damaged or out of date, and what to do about it.
    """

    sections: tuple[Section, ...]
    gaps: tuple[Gap, ...]


def page(results: Results, place: Place) -> Page:
    """Makes all sections that the results allow.

    A section whose files have another form than this version's becomes a gap.
    """
    sections, gaps = [], [*results.gaps]
    for title, make in _SECTIONS.items():
        try:
            section = make(results)
        except UNREADABLE as error:
            gaps.append(unreadable(f"the section on {title}", error, results.model, place))
            continue
        if section is not None:
            sections.append(section)
    return Page(tuple(sections), tuple(gaps))


def all_sections(page: Page) -> tuple[Section, ...]:
    """Returns the sections of a page, with what is missing after what to deploy."""
    first = page.sections[:1] if page.sections and page.sections[0].name == "deploy" else ()
    return (*first, *_missing(page.gaps), *page.sections[len(first) :])


def _missing(gaps: tuple[Gap, ...]) -> tuple[Section, ...]:
    if not gaps:
        return ()
    rows = [(gap.problem, gap.hint) for gap in gaps]
    listed = table("Missing, damaged or out of date", ("what", "what to do"), rows)
    return (Section("missing", "What is missing", tables=(listed,)),)

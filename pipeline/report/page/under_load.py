"""The section on what engines serve with several sessions, and on random arrivals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.report import load as report
from pipeline.report.page import svg
from pipeline.report.page.content import Figure, Section, table
from pipeline.report.page.figures import log_axis, round_duration
from pipeline.report.page.results import Results

_PANEL = 110  # points
# Which percentiles are drawn, with the dashes of their lines.
_DRAWN = {"p50": "-", "p90": "--", "p99": ":"}


def load(results: Results) -> Section | None:
    """Returns throughput and latency against sessions, and latency against the rate."""
    drawn, tables, remarks = [], [], []
    for number, part in enumerate(results.precisions, 1):
        if part.load is None:
            continue
        where = f"in {part.name}"
        limits = [*report.limits(part.load)]
        title = f"Throughput with several sessions {where}"
        drawn.append(_concurrency(f"{number}", title, part.load))
        if any(run["latency"] for run in _every(part.load, "arrivals")):
            title = f"Latency of random arrivals {where}"
            drawn.append(_arrivals(f"{number}", title, part.load, "; ".join(limits)))
        for make in (report.closed_table, report.arrivals_table):
            title, columns, rows = make(part.load)
            tables.append(table(f"{title}, {where}", columns, rows, folded=True))
        remarks += [*limits, *report.doubts(part.load)]
    if not tables:
        return None
    return Section(
        "load",
        "Under load",
        sentences=(
            "Throughput is of clients that wait for each answer, one for each session. Random"
            " arrivals wait for nobody: they queue, and their latency counts from the scheduled"
            " moment. Engines ran one after the other.",
        ),
        figures=tuple(drawn),
        tables=tuple(tables),
        remarks=tuple(dict.fromkeys(remarks)),
    )


def _every(results: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    return [run for engine in results["engines"] for run in engine[kind]]


def _style(number: int) -> dict[str, Any]:
    """Returns the colour and the marker of an engine, by its place."""
    return {
        "color": svg.SERIES[number % len(svg.SERIES)],
        "marker": svg.MARKERS[number % len(svg.MARKERS)],
    }


def _concurrency(name: str, title: str, results: Mapping[str, Any]) -> Figure:
    """Draws rows/s, and the median latency, against the number of sessions."""
    text, rows = "; ".join(report.most(results)), results["rows"]
    counts = sorted({run["concurrency"] for run in _every(results, "closed")})
    with svg.plotting(f"figure-load-{name}", title, text, 2 * _PANEL + 60) as plot:
        upper, lower = plot.drawing.subplots(2, 1, sharex=True)
        medians = []
        for number, engine in enumerate(results["engines"]):
            own = [run for run in engine["closed"] if run["throughput"]]
            rates = [run["throughput"] for run in own]
            upper.errorbar(
                [counts.index(run["concurrency"]) for run in own],
                [rate["value"] * rows for rate in rates],
                yerr=[
                    [(rate["value"] - rate["low"]) * rows for rate in rates],
                    [(rate["high"] - rate["value"]) * rows for rate in rates],
                ],
                capsize=2.5,
                label=engine["name"],
                **_style(number),
            )
            known = [run for run in own if "p50" in run["latency"]]
            times = [run["latency"]["p50"]["value"] for run in known]
            places = [counts.index(run["concurrency"]) for run in known]
            lower.plot(places, times, **_style(number))
            medians += times
        upper.set_ylim(bottom=0)
        upper.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        upper.set_title(f"{results['counted']}/s")
        lower.set_title("median latency")
        if medians:
            log_axis(lower, lower.yaxis, min(medians), max(medians), round_duration)
        lower.set_xticks(range(len(counts)), [f"{count}" for count in counts])
        lower.set_xlabel("sessions")
        plot.drawing.legend(loc="outside lower left", ncols=2)
    return Figure(title, text, plot.svg)


def _arrivals(name: str, title: str, results: Mapping[str, Any], text: str) -> Figure:
    """Draws percentiles of the latency against the rate, and the largest rate that is borne."""
    with svg.plotting(f"figure-arrivals-{name}", title, text, 250) as plot:
        axes = plot.drawing.subplots()
        times, rates = [], []
        for number, engine in enumerate(results["engines"]):
            for percentile, dashes in _DRAWN.items():
                known = [run for run in engine["arrivals"] if percentile in run["latency"]]
                values = [run["latency"][percentile]["value"] for run in known]
                label = f"{engine['name']} {percentile}"
                if known:
                    places = [run["rate"] for run in known]
                    axes.plot(places, values, linestyle=dashes, label=label, **_style(number))
                    times += values
                    rates += places
            limit = engine["saturation"]
            if limit and limit["rate"]:
                axes.axvline(limit["rate"], color=_style(number)["color"], linewidth=4, alpha=0.3)
                rates.append(limit["rate"])
        log_axis(axes, axes.xaxis, min(rates), max(rates), lambda value: f"{value:,.0f}")
        log_axis(axes, axes.yaxis, min(times), max(times), round_duration)
        axes.set_xlabel("requests/s; the broad lines are the largest that are borne")
        axes.set_title("latency from the scheduled arrival")
        plot.drawing.legend(loc="outside lower left", ncols=2)
    return Figure(title, text, plot.svg)

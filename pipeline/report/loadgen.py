"""The printed report of LoadGen's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.units import duration
from pipeline.workflow import console

# LoadGen's names of the samples it had answered in each second, one for each scenario that has it.
_RATES = ("QPS w/o loadgen overhead", "Samples per second", "Completed samples per second")
_PERCENTILE = "{:.2f} percentile latency (ns)"
# The reason of a run of Server whose p99 is above the bound.
_LATE = "Performance constraints satisfied: no"
_OPTIONAL = (">threads", "device", ">p90")


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Prints a row for each run, and why runs are invalid.

    Args:
        results: As `assay loadgen` makes them.
    """
    columns = ["engine", "scenario", "device", ">sessions", ">threads", "LoadGen's verdict"]
    columns += [">samples/s", ">p50", ">p90", ">p99"]
    rows = [
        [
            result["engine"],
            result["scenario"],
            result["device"],
            f"{result['sessions']}",
            f"{result['threads']}",
            _verdict(result),
            *_figures(result["figures"]),
        ]
        for result in results
    ]
    console.table("MLPerf LoadGen", columns, rows, _OPTIONAL)
    for result in results:
        name = f"{result['engine']} in {result['scenario']}"
        if result["reasons"]:
            console.result(f"{name}: {'; '.join(result['reasons'])}")
        if result["errors"]:
            console.result(
                f"{name}: LoadGen logged {result['errors']} errors; --log keeps its logs"
            )


def invalid(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the runs that LoadGen calls invalid."""
    return [
        f"{result['engine']} in {result['scenario']}"
        for result in results
        if result["valid"] is False
    ]


def remedy(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns what may make the invalid runs valid."""
    reasons = [result["reasons"] for result in results if result["valid"] is False]
    late = [_LATE in words for words in reasons]
    remedies = []
    if any(late):
        remedies.append("too many queries took longer than --p99: give a lower --rate")
    if not all(late):
        remedies.append("a longer --min-duration helps where LoadGen had too few queries")
    return "; ".join(remedies)


def _verdict(result: Mapping[str, Any]) -> str:
    return {True: "VALID", False: "INVALID", None: ""}[result["valid"]]


def _figures(figures: Mapping[str, float]) -> list[str]:
    rate = next((figures[name] for name in _RATES if name in figures), None)
    times = [figures.get(_PERCENTILE.format(percent)) for percent in (50, 90, 99)]
    return [
        "" if rate is None else f"{rate:,.0f}",
        *("" if time is None else duration(time / 1e9) for time in times),
    ]

"""The printed report of the load stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.benchmarking.contention import NOTICEABLE
from pipeline.report.units import duration
from pipeline.workflow import console

_LATE = "no: p99"
_MANY = 100  # from here on, a rate has no decimals
# Columns left out in this order where the terminal is narrow.
_OPTIONAL = (
    ">95 % interval",
    "device",
    ">threads",
    ">waiting",
    ">CPU/request",
    ">p90",
    ">served/s",
)


def show(results: Mapping[str, Any]) -> None:
    """Prints what clients that wait were served, each rate, and the largest that is borne."""
    for title, columns, rows in (closed_table(results), arrivals_table(results)):
        console.table(title, columns, rows, _OPTIONAL)
    for sentence in (*limits(results), *doubts(results)):
        console.result(sentence)


def failures(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns why engines failed, by name."""
    return {entry["name"]: entry["failure"] for entry in results["engines"] if entry["failure"]}


def closed_table(results: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Returns a title, titles of columns, and a row of cells for each number of sessions."""
    columns = ["engine", "device", ">sessions", ">threads", f">{results['counted']}/s served"]
    columns += [">95 % interval", ">p50", ">p90", ">p99", ">CPU/request", "failure"]
    rows = [
        [
            engine["name"],
            engine["device"],
            f"{served['concurrency']}",
            f"{served['threads']}",
            *_rows_per_second(served),
            *(_percentile(served, name) for name in ("p50", "p90", "p99")),
            duration(served["cpu_seconds"]),
            served["failure"],
        ]
        for engine in results["engines"]
        for served in engine["closed"]
    ]
    # An engine that could not be opened has no numbers.
    rows += [
        [engine["name"], *[""] * (len(columns) - 2), engine["failure"]]
        for engine in results["engines"]
        if engine["failure"] and not _has_failed_run(engine)
    ]
    return f"Clients that wait for each answer{_of_rows(results)}", columns, rows


def arrivals_table(results: Mapping[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Returns a title, titles of columns, and a row of cells for each rate."""
    columns = ["engine", ">sessions", ">threads", ">offered/s", ">served/s", ">load"]
    columns += [">p50", ">p90", ">p99", ">waiting", "borne", "failure"]
    rows = [
        [
            engine["name"],
            f"{served['concurrency']}",
            f"{served['threads']}",
            _rate(served["rate"]),
            _rate(served["throughput"]["value"]) if served["throughput"] else "",
            f"{served['load']:.0%}",
            *(_percentile(served, name) for name in ("p50", "p90")),
            _percentile(served, "p99") or _beyond(served, results["p99"]),
            f"{served['waiting']:,}",
            _borne(served),
            served["failure"],
        ]
        for engine in results["engines"]
        for served in engine["arrivals"]
    ]
    return f"Random arrivals that wait for nobody{_of_rows(results)}", columns, rows


def most(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence on the largest throughput of each engine."""
    for engine in results["engines"]:
        served = [run for run in engine["closed"] if run["throughput"]]
        if served:
            best = max(served, key=lambda run: float(run["throughput"]["value"]))
            rate = _rate(best["throughput"]["value"] * best["rows"])
            count = _sessions(best["concurrency"])
            yield f"{engine['name']} serves {rate} {results['counted']}/s with {count}"


def limits(results: Mapping[str, Any]) -> Iterator[str]:
    """Yields a sentence on the largest rate that each engine bears."""
    bound = "" if results["p99"] is None else f" with a p99 of at most {duration(results['p99'])}"
    for engine in results["engines"]:
        limit = engine["saturation"]
        if limit is None:
            continue
        sessions = _sessions(limit["concurrency"])
        if not limit["refused"]:
            yield f"{engine['name']} bears no rate{bound}: a request alone takes longer"
            continue
        if limit["rate"]:
            words = f"bears {_rate(limit['rate'])} requests/s"
        else:
            words = "bears no rate that was tried"
        yield f"{engine['name']} {words}{bound}, with {sessions}; not {_rate(limit['refused'])}"


def doubts(results: Mapping[str, Any]) -> list[str]:
    """Returns a sentence on what other processes took, if that was much."""
    runs = [run for engine in results["engines"] for run in engine["closed"] + engine["arrivals"]]
    others = max((run["others"] or 0.0 for run in runs), default=0.0)
    if others <= NOTICEABLE:
        return []
    return [f"other processes took up to {others:.0%} of the CPUs; measure on a quiet machine"]


def _has_failed_run(engine: Mapping[str, Any]) -> bool:
    return any(run["failure"] for run in engine["closed"] + engine["arrivals"])


def _sessions(count: int) -> str:
    return f"{count} session{'s' if count > 1 else ''}"


def _of_rows(results: Mapping[str, Any]) -> str:
    rows, counted = results["rows"], results["counted"]
    return "" if rows == 1 else f"; {rows} {counted} each"


def _rows_per_second(served: Mapping[str, Any]) -> tuple[str, str]:
    rate, rows = served["throughput"], served["rows"]
    if rate is None:
        return "", ""
    return _rate(rate["value"] * rows), f"{_rate(rate['low'] * rows)}-{_rate(rate['high'] * rows)}"


def _percentile(served: Mapping[str, Any], name: str) -> str:
    return duration(served["latency"][name]["value"]) if name in served["latency"] else ""


def _beyond(served: Mapping[str, Any], bound: float | None) -> str:
    """Returns what is known of a p99 if the run ended as soon as it could not keep the bound."""
    return f"> {duration(bound)}" if bound is not None and _borne(served) == _LATE else ""


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= _MANY else f"{value:.3g}"


def _borne(served: Mapping[str, Any]) -> str:
    if served["failure"]:
        return ""
    if served["saturated"]:
        return "no: queue"
    return "yes" if served["borne"] else _LATE

"""The printed report of the bench stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.benchmarking.contention import NOTICEABLE
from pipeline.report.units import duration
from pipeline.workflow import console

# One engine's results at one batch size, by boundary, with its device and baseline.
_Row = dict[str, Any]

DEVICE, WHOLE = "device", "end to end"
# A ratio that may be three times as large as it may be small is not a result.
_WIDEST = 3.0
UNSETTLED, BUSY = "*", "busy"


def show(measurements: dict[str, Any]) -> None:
    """Prints one row for each engine and batch size."""
    console.table(*table(measurements), (_throughput(measurements), *_OPTIONAL))
    for sentence in (*doubts(measurements), *bounds(measurements["results"])):
        console.result(sentence)


def table(measurements: dict[str, Any]) -> tuple[str, list[str], list[list[str]]]:
    """Returns a title, titles of columns, and a row of cells for each engine and batch size."""
    rows: dict[tuple[str, int, str], _Row] = {}
    for entry in measurements["results"]:
        row = rows.setdefault((entry["name"], *load_of(entry)), {})
        row[entry["boundary"]] = entry
        row["device name"] = measurements["devices"][entry["name"]]
        # For files written before each kind of device had its own baseline.
        row["baseline"] = entry.get("baseline", measurements["baseline"])
    for (_, *load), row in rows.items():
        row["baseline busy"] = rows[row["baseline"], *load][WHOLE].get("busy")
    baselines = {row["device name"].partition(":")[0]: row["baseline"] for row in rows.values()}
    names = [
        name if len(baselines) == 1 else f"{name} ({kind})" for kind, name in baselines.items()
    ]
    compared = {name for name, _, _ in rows} - {*baselines.values()}
    title = f"Latency, and speed against {', '.join(names)}" if compared else "Latency"
    throughput = _throughput(measurements)
    columns = {
        throughput if column == _THROUGHPUT else column: cell for column, cell in _COLUMNS.items()
    }
    if not any(size for _, _, size in rows):
        del columns[_SIZE]
    return title, [*columns], [[cell(row) for cell in columns.values()] for row in rows.values()]


def _failed(failures: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each engine and load at which it failed."""
    return [
        f"{entry['name']} failed"
        + (f" at batch {entry['batch']}" if "batch" in entry else "")
        + (f" of {entry['size']}" if "size" in entry else "")
        + f": {entry['reason']}"
        for entry in failures
    ]


def counted(measurements: Mapping[str, Any]) -> str:
    """Returns what a batch consists of: "images" or "rows"."""
    return str(measurements.get("counted", "images"))


def _throughput(measurements: dict[str, Any]) -> str:
    return f">{counted(measurements)}/s"


def doubts(measurements: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each reason why results are missing or uncertain, with what to do."""
    results = measurements["results"]
    others = max((entry.get("others") or 0.0 for entry in results), default=0.0)
    cause = f"other processes took up to {others:.0%} of the CPUs"
    sentences = _failed(measurements.get("failures", ()))
    if any(entry.get("busy") for entry in results):
        sentences.append(
            f"{BUSY}: {cause}, and threads waited for each other; measure on a quiet machine, or"
            " with fewer --threads"
        )
    if not all(entry["settled"] for entry in results):
        sentences.append(
            f"{UNSETTLED} unstable: {cause if others > NOTICEABLE else 'too few rounds'}; a larger"
            " --budget helps"
        )
    return sentences


def bounds(results: list[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each engine and batch on a GPU whose time launches or copies bound.

    Args:
        results: As `pipeline.benchmarking.comparison.compare` returns them.
    """
    seconds = {
        (entry["name"], *load_of(entry), entry["boundary"]): entry["seconds"]["value"]
        for entry in results
    }
    sentences = []
    for entry in results:
        if entry["boundary"] != DEVICE or "bound" not in entry:
            continue
        name, device = entry["name"], duration(entry["seconds"]["value"])
        batch = f"{entry['batch']}" + (f" of {entry['size']}" if "size" in entry else "")
        if entry["bound"] == "launches":
            sentences.append(
                f"{name} at batch {batch} is bound by launches: the CPU takes"
                f" {duration(entry['enqueue_seconds'])} to enqueue {device} of work;"
                " --cuda-graph replays them as one"
            )
        elif entry["bound"] == "transfers":
            sentences.append(
                f"{name} at batch {batch} is bound by transfers: {device} of"
                f" {duration(seconds[name, *load_of(entry), WHOLE])} are on the device"
            )
    return sentences


def load_of(entry: dict[str, Any]) -> tuple[int, str]:
    """Returns the batch size and the size of the inputs of a result; "" if it is the only one."""
    return entry["batch"], entry.get("size", "")


def _interval(row: _Row) -> str:
    seconds = row[WHOLE]["seconds"]
    return f"{duration(seconds['low'])} to {duration(seconds['high'])}"


def _p99(row: _Row) -> str:
    known = row[WHOLE]["percentiles"]
    return duration(known["p99"]["value"]) if "p99" in known else ""


def _speed(row: _Row) -> str:
    if row[WHOLE]["name"] == row["baseline"]:
        return ""
    ratio = row[WHOLE]["ratio"]
    if row[WHOLE].get("busy") or row["baseline busy"]:
        return BUSY
    if ratio["high"] > _WIDEST * ratio["low"]:
        return "not known"
    return f"{ratio['value']:.2f}x ({ratio['low']:.2f}-{ratio['high']:.2f})"


def _time(row: _Row, boundary: str) -> str:
    if boundary not in row:
        return ""
    entry = row[boundary]
    return duration(entry["seconds"]["value"]) + ("" if entry["settled"] else UNSETTLED)


_SIZE = "size"
_THROUGHPUT = "throughput"  # stands for images/s or rows/s
# Each column's cells by its title; ">" aligns a column to the right.
_COLUMNS: dict[str, Callable[[_Row], str]] = {
    "engine": lambda row: str(row[WHOLE]["name"]),
    "device": lambda row: str(row["device name"]),
    _SIZE: lambda row: row[WHOLE].get("size", ""),
    ">batch": lambda row: str(row[WHOLE]["batch"]),
    ">on device": lambda row: _time(row, DEVICE),
    ">end to end": lambda row: _time(row, WHOLE),
    ">95 % interval": _interval,
    ">p99": _p99,
    _THROUGHPUT: lambda row: f"{row[WHOLE]['batch'] / row[WHOLE]['seconds']['value']:,.0f}",
    ">speed": _speed,
}
# Left out in this order where the terminal is narrow.
_OPTIONAL = (">95 % interval", "device", ">on device")

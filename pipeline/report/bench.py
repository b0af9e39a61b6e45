"""The printed report of the bench stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pipeline.workflow import console

# One engine's result at one batch size and boundary, with its device.
_Row = dict[str, Any]


def show(measurements: dict[str, Any]) -> None:
    """Prints one row for each engine, batch size and boundary."""
    rows = [
        {
            # For files written before each kind of device had its own baseline.
            "baseline": measurements["baseline"],
            **result,
            "device": measurements["devices"][result["name"]],
        }
        for result in measurements["results"]
    ]
    baselines = {row["device"].partition(":")[0]: row["baseline"] for row in rows}
    names = [
        name if len(baselines) == 1 else f"{name} ({kind})" for kind, name in baselines.items()
    ]
    title = f"Latency, and speed against {', '.join(names)}"
    cells = [[cell(row) for cell in _COLUMNS.values()] for row in rows]
    console.table(title, tuple(_COLUMNS), cells)
    for sentence in bounds(measurements["results"]):
        console.result(sentence)


def bounds(results: list[dict[str, Any]]) -> list[str]:
    """Returns a sentence for each engine and batch on a GPU whose time launches or copies bound.

    Args:
        results: As `pipeline.benchmarking.comparison.compare` returns them.
    """
    seconds = {
        (entry["name"], entry["batch"], entry["boundary"]): entry["seconds"]["value"]
        for entry in results
    }
    sentences = []
    for entry in results:
        if entry["boundary"] != "device" or "bound" not in entry:
            continue
        name, batch, device = entry["name"], entry["batch"], _micro(entry["seconds"]["value"])
        if entry["bound"] == "launches":
            sentences.append(
                f"{name} at batch {batch} is bound by launches: the CPU takes"
                f" {_micro(entry['enqueue_seconds'])} µs to enqueue {device} µs of work;"
                " --cuda-graph replays them as one"
            )
        elif entry["bound"] == "transfers":
            sentences.append(
                f"{name} at batch {batch} is bound by transfers: {device} of"
                f" {_micro(seconds[name, batch, 'end to end'])} µs are on the device"
            )
    return sentences


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}"


def _interval(row: _Row) -> str:
    return f"{_micro(row['seconds']['low'])} to {_micro(row['seconds']['high'])}"


def _speed(row: _Row) -> str:
    if row["name"] == row["baseline"]:
        return ""
    ratio = row["ratio"]
    return f"{ratio['value']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})"


# Each column's cells by its title; ">" aligns a column to the right.
_COLUMNS: dict[str, Callable[[_Row], str]] = {
    "engine": lambda row: str(row["name"]),
    "device": lambda row: str(row["device"]),
    ">batch": lambda row: str(row["batch"]),
    "boundary": lambda row: str(row["boundary"]),
    ">µs": lambda row: _micro(row["seconds"]["value"]),
    ">95 % interval": _interval,
    ">images/s": lambda row: f"{row['batch'] / row['seconds']['value']:,.0f}",
    ">speed": _speed,
    "": lambda row: "settled" if row["settled"] else "unstable",
}

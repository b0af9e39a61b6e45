"""The measured figures of a bundle, as its bill of materials and its model card list them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Attributes:
        kind: What was measured, with its unit.
        value: The figure, or a word such as "pass".
        where: What it was measured on: the data, or the engine, the load and the machine.
        low: Lower bound of its 95 % interval; None without an interval.
        high: Upper bound of the interval.
        boundary: What a latency includes; "" for other figures.
        quantile: Which quantile a latency is, "median" or as in "p99".
    """

    kind: str
    value: float | str
    where: str
    low: float | None = None
    high: float | None = None
    boundary: str = ""
    quantile: str = ""


def collect(
    training: Mapping[str, Any] | None,
    verdicts: Mapping[str, Mapping[str, Any]],
    measurements: Mapping[str, Any] | None,
) -> list[Figure]:
    """Returns the accuracy, the verdicts and the latencies.

    Args:
        training: Content of `training.json`; None for a graph from elsewhere.
        verdicts: Contents of the verdicts on the graph and the engines, by name.
        measurements: Content of `measurements.json`; None if nothing was measured.
    """
    figures = []
    if training is not None and "test_accuracy" in training:
        where = f"PyTorch, {training['test_images']:,} test images"
        figures.append(Figure("accuracy", training["test_accuracy"], where))
    for name, verdict in sorted(verdicts.items()):
        device = verdict["facts"].get("device")
        where = f"{name} on {device}" if device else name
        figures.append(Figure("parity with PyTorch in float64", verdict["status"], where))
        flips = verdict["flips"]
        if flips and flips["correct"] is not None:  # None if the classes are not known
            share = flips["correct"] / flips["images"]
            figures.append(Figure("accuracy", share, f"{where}, {flips['images']:,} test images"))
    if measurements is not None:
        figures += _latencies(measurements)
    return figures


def _latencies(measurements: Mapping[str, Any]) -> list[Figure]:
    machine, devices = measurements["machine"], measurements["devices"]
    names = [gpu["name"] for gpu in machine["gpus"] if isinstance(gpu, dict) and "name" in gpu]
    host = ", ".join([f"{machine['cpu']} with {machine['threads']} threads", *names])
    figures = []
    for entry in measurements["results"]:
        load = f"batch {entry['batch']}" + (f" of {entry['size']}" if entry.get("size") else "")
        where = f"{entry['name']} on {devices[entry['name']]}, {load}, {entry['boundary']}; {host}"
        if entry.get("busy") or not entry["settled"]:
            where += "; unstable: other processes, or too few rounds"
        # The median as the tables have it: the typical one of all rounds.
        upper = {name: known for name, known in entry["percentiles"].items() if name != "p50"}
        for quantile, known in {"median": entry["seconds"], **upper}.items():
            kind = f"latency in seconds, {quantile}"
            interval = known["value"], where, known["low"], known["high"]
            figures.append(Figure(kind, *interval, entry["boundary"], quantile))
    return figures

"""The printed report of the export stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.workflow import console


def show(graph: Path, description: dict[str, Any]) -> None:
    """Prints a graph's path, size and types, its calibration, and the warnings of its export."""
    types = ", ".join(f"{count} in {name}" for name, count in description["precisions"].items())
    size = graph.stat().st_size
    console.result(f"graph: {graph} ({size:,} bytes, opset {description['opset']}, nodes: {types})")
    if "calibration" in description:
        calibration = description["calibration"]
        console.result(f"calibrated on {calibration['source']} by {calibration['method']}")
        for method, reason in calibration["failed"].items():
            console.result(f"not calibrated by {method}: {reason}")
        for node, reason in calibration["in_float"].items():
            console.result(f"kept in float: {node}, since it {reason}")
    for warning in description["warnings"]:
        console.result(f"frozen by tracing? {warning}")

"""What is printed after the stage export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.workflow import console


def show(graph: Path, description: dict[str, Any]) -> None:
    """Prints where a graph is, how large, in which types, and what its export warned of."""
    types = ", ".join(f"{count} in {name}" for name, count in description["precisions"].items())
    size = graph.stat().st_size
    console.result(f"graph: {graph} ({size:,} bytes, opset {description['opset']}, nodes: {types})")
    if "calibration" in description:
        calibration = description["calibration"]
        console.result(f"calibrated on {calibration['source']} by {calibration['method']}")
    for warning in description["warnings"]:
        console.result(f"frozen by tracing? {warning}")

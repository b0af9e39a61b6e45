"""The printed report of the build stage."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.layer_report import Layer, counted
from pipeline.workflow import console

if TYPE_CHECKING:
    from engines.contract import Availability


def show(engine: str, path: Path, layer_file: dict[str, Any], available: Availability) -> None:
    """Prints a built engine's path, its layers' types, and whether this machine can run it.

    Args:
        layer_file: The content of the engine's `layers.json`.
    """
    layers = [Layer(**entry) for entry in layer_file["layers"]]
    notes = layer_file["notes"]
    here = "" if available.run else f"; not run on this machine: {available.reason}"
    console.result(f"{engine}: {path} ({path.stat().st_size:,} bytes){here}")
    if layers:
        console.result(f"  layers: {counted(layers)}")
    for name, value in notes.items():
        if isinstance(value, str):
            console.result(f"  {name}: {value}")
    if mismatches := notes.get("other_types"):
        console.result(f"  not in the graph's type: {'; '.join(mismatches)}")

"""The printed report of the bundle stage."""

from __future__ import annotations

from pathlib import Path

from pipeline.workflow import console


def show(path: Path) -> None:
    """Prints the bundle's path and size."""
    console.result(f"bundle: {path} ({path.stat().st_size:,} bytes)")

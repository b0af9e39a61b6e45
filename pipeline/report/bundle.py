"""What is printed after the stage bundle."""

from __future__ import annotations

from pathlib import Path

from pipeline.workflow import console


def show(path: Path) -> None:
    """Prints where the bundle is."""
    console.result(f"bundle: {path} ({path.stat().st_size:,} bytes)")

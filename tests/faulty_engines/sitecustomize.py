"""Adds the engines of this folder to every process that has the folder on its PYTHONPATH."""

from pathlib import Path

from engines import backends

backends.__path__.append(str(Path(__file__).parent / "backends"))

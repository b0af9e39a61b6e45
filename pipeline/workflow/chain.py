"""The order of the stages, and access to them by name."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.workflow.stage import Stage

# The stages of `assay run`, and those that are commands of their own.
IN_RUN = ("data", "train", "export", "verify", "build", "bench", "bundle")
STAGES = (*IN_RUN[:-1], "profile", IN_RUN[-1])


def stage(name: str) -> Stage[Any]:
    """Returns a stage by its name. Imports no large library."""
    declared: Stage[Any] = importlib.import_module(f"pipeline.stages.{name}").STAGE
    return declared

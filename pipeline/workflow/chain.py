"""The stages and their order, and access to them by name."""

from __future__ import annotations

import importlib
from typing import Any

from pipeline.workflow.stage import Stage

# What `assay run` runs, in this order.
RUN = ("data", "train", "export", "verify", "build", "bench", "bundle")
STAGES = (*RUN, "load", "profile", "sweep")


def stage(name: str) -> Stage[Any]:
    """Returns a stage by its name. Imports no large library."""
    declared: Stage[Any] = importlib.import_module(f"pipeline.stages.{name}").STAGE
    return declared

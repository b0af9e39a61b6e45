"""The printed lists of a model's trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.report.train import describe
from pipeline.report.units import size
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.workflow.runs import Run


def show(model: str, runs: Sequence[Run]) -> None:
    """Prints a row for each run, with its result, data set, date and size."""
    console.table(
        f"Trained weights of {model}",
        ("run", "", "result", "data set", "seed", "started", ">size"),
        [
            (
                run.name,
                "current" if run.current else "",
                _result(run),
                str(run.training.get("data") or ""),
                str(run.training.get("seed", "")),
                "" if run.record is None else _minute(run.record.started),
                size(run.size),
            )
            for run in runs
        ],
        (">size", "seed", "data set"),
    )


def _result(run: Run) -> str:
    """Returns the accuracy or loss of a run, and how it was trained."""
    if not run.training:
        return "its records are damaged"
    return describe(run.training).removeprefix("test accuracy ")


def _minute(started: str) -> str:
    """Returns the date and time in an ISO 8601 text, to the minute, in UTC."""
    return started[:16].replace("T", " ")


def show_removed(runs: Sequence[Run], *, dry_run: bool) -> None:
    """Prints which runs were, or would be, removed, and how much space they took."""
    verb = "would remove" if dry_run else "removed"
    for run in runs:
        console.result(f"{verb} run {run.name}: {size(run.size)}")
    total = size(sum(run.size for run in runs))
    console.result(f"{verb} {total}" if runs else "there is nothing to remove")

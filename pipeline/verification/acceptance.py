"""Rejects verdicts that are not a pass, and says what to do about them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import (
    CrashedError,
    DeployError,
    FailedError,
    NotAvailableError,
    ParityError,
)
from exporters import PRECISIONS
from pipeline.workflow import hints
from pipeline.workflow.artifacts import GRAPH_PREFIX, GRAPH_SUBJECT

if TYPE_CHECKING:
    from pipeline.verification.verdict import Verdict

# The verdicts with which an engine may be bundled; one that is not run here is proved elsewhere.
ACCEPTED = ("pass", "not run")
_NAMED = 5  # reasons in an error; the table of verdicts is printed with all
_FAILED_HINT = "build the engine again, or name the other engines with --engine"
_CRASH_HINT = "name the other engines with --engine, or install another version of the library"


def require_pass(verdicts: Sequence[Verdict], model: str, file: Path | None = None) -> None:
    """Raises unless every verdict is a pass.

    Args:
        model: The name of the model.
        file: The file that was judged, if no stage made it.

    Raises:
        CrashedError: A verdict is "crashed".
        FailedError: A verdict is "failed".
        ParityError: A verdict is a mismatch, or vacuous.
        NotAvailableError: A verdict is "not run".
    """
    failed = [verdict for verdict in verdicts if verdict.status not in ACCEPTED]
    details = {"verdicts": [dataclasses.asdict(verdict) for verdict in verdicts]}
    if failed:
        message = "; ".join(map(_sentence, failed))
        statuses = {verdict.status for verdict in failed}
        if "crashed" in statuses:
            error: DeployError = CrashedError(message, _CRASH_HINT)
        elif "failed" in statuses:
            error = FailedError(message, _FAILED_HINT)
        else:
            error = ParityError(message, _parity_hint(failed[0], model, file))
        error.details = details
        raise error
    for verdict in verdicts:
        if verdict.status == "not run":
            raise NotAvailableError(
                f"{verdict.subject} was not run on this machine: {verdict.reason}",
                "prove it on the target with `assay check BUNDLE`",
            )


def _sentence(verdict: Verdict) -> str:
    if verdict.status == "crashed":
        return f"{verdict.subject} crashed: {verdict.reason}"
    if verdict.status == "failed":
        return f"{verdict.subject} cannot be judged: {verdict.reason}"
    reasons = verdict.reason.split("; ")
    if len(reasons) > _NAMED:  # the last one is of the weights, if they differ
        more = f"{len(reasons) - _NAMED} more"
        reasons = [*reasons[: _NAMED - 1], more, reasons[-1]]
    return f"{verdict.subject} is not proved equal to the model: {'; '.join(reasons)}"


def _parity_hint(verdict: Verdict, model: str, file: Path | None) -> str:
    if verdict.status == "vacuous":
        if not any(output.vacuous for output in verdict.outputs):
            return "test on more images, or export with a larger --max-drop"
        return "such outputs cannot prove any engine; check the model's weights and inputs"
    if PRECISIONS[verdict.precision].quantized:
        return "calibrate on other data, or deploy another precision"
    if model.startswith(GRAPH_PREFIX):
        graph = shlex.quote(model.removeprefix(GRAPH_PREFIX))
        engine = "" if verdict.subject == GRAPH_SUBJECT else f" --engine {verdict.subject}"
        return f"`assay reduce {graph}{engine}` finds the part that differs"
    words = hints.command("verify", {"model": model, **_named(verdict)})
    words += f" --file {shlex.quote(str(file))}" if file else ""
    return f"`{words} --bisect` names the first node that differs, if any"


def _named(verdict: Verdict) -> dict[str, str]:
    return {"precision": verdict.precision, "engine": verdict.subject}

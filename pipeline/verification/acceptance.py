"""Rejects verdicts that are not a pass, and says what to do about them."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import NotAvailableError, ParityError
from exporters import PRECISIONS
from pipeline.workflow import hints

if TYPE_CHECKING:
    from pipeline.verification.verdict import Verdict


def require_pass(verdicts: Sequence[Verdict], model: str, file: Path | None = None) -> None:
    """Raises unless every verdict is a pass.

    Args:
        model: The name of the model.
        file: The file that was judged, if no stage made it.

    Raises:
        ParityError: A verdict is a mismatch, or vacuous.
        NotAvailableError: A verdict is "not run".
    """
    for verdict in verdicts:
        if verdict.status in ("mismatch", "vacuous"):
            words = hints.command("verify", {"model": model, **_named(verdict)})
            words += f" --file {shlex.quote(str(file))}" if file else ""
            hint = f"`{words} --bisect` names the first node that differs, if any"
            if verdict.status == "vacuous":
                hint = "such outputs cannot prove any engine; check the model's weights and inputs"
            elif PRECISIONS[verdict.precision].quantized:
                hint = "calibrate on other data, or deploy another precision"
            raise ParityError(
                f"{verdict.subject} is not proved equal to the PyTorch model: {verdict.reason}",
                hint,
                {"verdicts": [dataclasses.asdict(verdict) for verdict in verdicts]},
            )
    for verdict in verdicts:
        if verdict.status == "not run":
            raise NotAvailableError(
                f"{verdict.subject} was not run on this machine: {verdict.reason}",
                "prove it on the target with `assay check BUNDLE`",
            )


def _named(verdict: Verdict) -> dict[str, str]:
    return {"precision": verdict.precision, "engine": verdict.subject}

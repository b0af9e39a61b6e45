"""The printed report of the verify stage and of `assay check`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from exporters import PRECISIONS
from pipeline.verification import limits
from pipeline.workflow import console

if TYPE_CHECKING:
    from pipeline.verification.verdict import OutputVerdict, Verdict


# Ratios from here on are printed by their power of ten.
_LONG = 1e6


def show(verdicts: Sequence[Verdict]) -> None:
    """Prints a table with a row for each output, then the remarks and reasons of each verdict."""
    labels = {output.label for verdict in verdicts for output in verdict.outputs}
    # The name of a single output is known; of several, it tells the rows from each other.
    optional = ("output", *_OPTIONAL) if len(labels) == 1 else (*_OPTIONAL, "output")
    console.table("Parity with the model", *cells(verdicts), optional)
    for verdict in verdicts:
        for sentence in remarks(verdict):
            console.result(sentence)


def cells(verdicts: Sequence[Verdict]) -> tuple[list[str], list[list[str]]]:
    """Returns titles of columns and rows of cells, with a row for each output of a verdict."""
    columns = dict(_COLUMNS)
    if len({verdict.precision for verdict in verdicts}) > 1:
        columns = {"subject": columns.pop("subject"), **_PRECISION_COLUMN, **columns}
    if any(PRECISIONS[verdict.precision].quantized for verdict in verdicts):
        columns |= _QUANTIZED_COLUMNS
    if any(deviating_type(verdict.facts, verdict.precision) for verdict in verdicts):
        columns |= _TYPE_COLUMNS
    rows = []
    for verdict in verdicts:
        if not verdict.outputs:
            known = {
                "subject": verdict.subject,
                "precision": verdict.precision,
                "verdict": verdict.status,
            }
            rows.append([known.get(name, "") for name in columns])
        for output in verdict.outputs:
            rows.append([cell(verdict, output) for _, cell in columns.values()])
    return [title for title, _ in columns.values()], rows


def remarks(verdict: Verdict) -> list[str]:
    """Returns what has to be said beside a verdict, and its reason."""
    sentences = []
    for output in verdict.outputs:
        sentences += rows_not_compared(
            verdict.subject, verdict.precision, dataclasses.asdict(output)
        )
        if output.constant and verdict.status == "pass":
            sentences.append(
                f"{verdict.subject}: {output.label} matches, but is the same for every input"
            )
    sentences += limits_of(dataclasses.asdict(verdict))
    if verdict.audit is not None and verdict.audit.gap:
        sentences.append(f"{verdict.subject}: {verdict.audit.gap}")
    if verdict.reason:
        sentences.append(f"{verdict.subject}: {verdict.status}: {verdict.reason}")
    return sentences


def limits_of(verdict: Mapping[str, Any]) -> list[str]:
    """Returns what a verdict on a quantized graph or engine does not tell.

    Args:
        verdict: The JSON form of a `Verdict`.
    """
    if not PRECISIONS[verdict["precision"]].quantized or not verdict["outputs"]:
        return []
    flips, allowed = verdict["flips"], verdict.get("max_drop")
    if flips is None or flips["correct"] is None:
        return [
            f"{verdict['subject']} in {verdict['precision']}: the verdict tells nothing about"
            " accuracy, since the classes of the inputs are not known"
        ]
    if allowed is not None and allowed > limits.MAX_DROP:
        return [
            f"{verdict['subject']} in {verdict['precision']}: judged with a looser limit than"
            f" usual: accuracy may fall by {100 * allowed:g} pp (--max-drop), not"
            f" {100 * limits.MAX_DROP:g}"
        ]
    return []


def rows_not_compared(subject: str, precision: str, output: Mapping[str, Any]) -> list[str]:
    """Returns what to say of golden rows that are not compared.

    Args:
        output: The JSON form of an `OutputVerdict`.
    """
    overflowing, skipped = output["overflowing"], output["incomparable"]
    reasons = (
        (overflowing, f"{precision} overflows on them"),
        (skipped - overflowing, "their rounding noise is large relative to their values"),
    )
    return [
        f"{subject}: {rows} golden rows of {output['name']} are not compared, since {reason}"
        for rows, reason in reasons
        if rows
    ]


def deviating_type(facts: dict[str, str], precision: str) -> str:
    """Returns the types in which an engine computed, if they are others than the graph's."""
    computed_in = facts.get("computed in", "")
    return computed_in if computed_in not in ("", precision) else ""


def ratio_text(ratio: float) -> str:
    """Returns an error in units of the noise floor, as a cell of a table."""
    from pipeline.verification.noise_floor import UNBOUNDED

    if ratio >= UNBOUNDED:
        return "inf"
    return f"{ratio:.2f}" if ratio < _LONG else f"{ratio:.1e}"


def _flips(verdict: Verdict, _output: OutputVerdict) -> str:
    flips = verdict.flips
    return "" if flips is None else f"{flips.unexplained}+{flips.explained} of {flips.images:,}"


def _accuracy(verdict: Verdict, _output: OutputVerdict) -> str:
    flips = verdict.flips
    if flips is None or flips.correct is None:
        return ""
    return f"{flips.correct / flips.images:.2%}"


def _accuracy_lost(verdict: Verdict, _output: OutputVerdict) -> str:
    drop = None if verdict.flips is None else verdict.flips.drop
    return "" if drop is None else str(drop)


def _sqnr(_verdict: Verdict, output: OutputVerdict) -> str:
    return "" if output.sqnr is None else f"{output.sqnr:.1f}"


def _weights(verdict: Verdict, _output: OutputVerdict) -> str:
    return "" if verdict.audit is None else str(verdict.audit)


_Column = tuple[str, Callable[["Verdict", "OutputVerdict"], str]]
# Each column's title and cells; ">" aligns a column to the right.
_COLUMNS: dict[str, _Column] = {
    "subject": ("subject", lambda verdict, _: verdict.subject),
    "verdict": ("verdict", lambda verdict, _: verdict.status),
    "output": ("output", lambda _, output: output.label),
    "rms": (">rms error", lambda _, output: f"{output.rms:.2e}"),
    "rms ratio": (">rms x floor", lambda _, output: ratio_text(output.rms_ratio)),
    "max": (">max error", lambda _, output: f"{output.max:.2e}"),
    "max ratio": (">max x floor", lambda _, output: ratio_text(output.max_ratio)),
    "flips": (">flips", _flips),
    "accuracy": (">top-1", _accuracy),
    "weights": (">weights", _weights),
}
# Left out in this order where the terminal is narrow.
_OPTIONAL = (
    *(">rms error", ">max error", ">top-1"),
    # Of a quantized graph, the errors are those of quantization.
    *(">rms x floor", ">max x floor", ">weights", ">flips"),
)
_PRECISION_COLUMN: dict[str, _Column] = {
    "precision": ("precision", lambda verdict, _: verdict.precision),
}
_TYPE_COLUMNS: dict[str, _Column] = {
    "computed in": ("computed in", lambda verdict, _: verdict.facts.get("computed in", "")),
}
_QUANTIZED_COLUMNS: dict[str, _Column] = {
    "accuracy lost": (">accuracy lost", _accuracy_lost),
    "sqnr": (">SQNR (dB)", _sqnr),
}

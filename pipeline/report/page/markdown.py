"""Writes the results of a model as Markdown that fits a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.report.bench import UNSETTLED, doubts
from pipeline.report.page import choice
from pipeline.report.page.results import UNREADABLE, PrecisionResults, Results, unreadable
from pipeline.report.train import chance_doubt, describe
from pipeline.report.units import duration, size
from pipeline.report.verify import ratio_text, remarks
from pipeline.workflow.artifacts import ENGINE, GRAPH, GRAPH_SUBJECT

if TYPE_CHECKING:
    from pipeline.workflow.hints import Place

_COMMAND = re.compile(r"(`[^`]+`)")
# What Markdown or HTML would take for markup.
_MARKUP = re.compile(r"([\\`*_\[\]<>|~#&])")


def text(results: Results, place: Place) -> str:
    """Returns accuracy, choice, one table with a row for each engine, and what is missing."""
    lines, gaps = [f"### {escaped(results.model)}", ""], [*results.gaps]
    parts = {"the accuracy": _accuracy, "the choice": _choices, "the table": _engines}
    for part, write in parts.items():
        try:
            lines += write(results)
        except UNREADABLE as error:
            gaps.append(unreadable(part, error, results.model, place))
    lines += [f"- {_prose(gap.problem)}: {_prose(gap.hint)}" for gap in gaps]
    return "\n".join(lines).rstrip() + "\n"


def _accuracy(results: Results) -> list[str]:
    if results.training is None:
        return []
    words = describe(results.training)
    doubt = chance_doubt(results.training)
    return [
        f"{words[0].upper()}{escaped(words[1:])}.",
        "",
        *([escaped(doubt), ""] if doubt else []),
    ]


def _choices(results: Results) -> list[str]:
    choices = choice.choose(results.model, choice.current(results))
    lines = [
        f"- **For {entry.goal}:** {_prose(' '.join((*entry.reasons, *entry.doubts)))}"
        for entry in choices
    ]
    return [*lines, ""] if lines else []


def _engines(results: Results) -> list[str]:
    """Returns a table with the verdict, accuracy, latency and size of each engine."""
    known = choice.candidates(results)
    loads = choice.loads(known)
    columns = [
        *("engine", "precision", "verdict", "error x floor", "top-1"),
        *(f"batch {batch}" + (f" at {size}" if size else "") for batch, size in loads),
        "size",
    ]
    rows: list[list[str]] = []
    for part in results.precisions:
        rows += [
            [
                subject,
                part.name,
                verdict.status,
                ratio_text(max(output.rms_ratio for output in verdict.outputs))
                if verdict.outputs
                else "",
                "" if (right := choice.accuracy(verdict)) is None else f"{right:.2%}",
                *(_latency(known, subject, part.name, load) for load in loads),
                _size(results, part, subject),
            ]
            for subject, verdict in part.verdicts.items()
        ]
    if not rows:
        return []
    lines = [
        row(columns),
        row(["---"] * 3 + ["---:"] * (len(columns) - 3)),
        *(row([escaped(cell) for cell in cells]) for cells in rows),
        "",
    ]
    every = [s for _, _, content in choice.runs(results.precisions) for s in doubts(content)]
    for part in results.precisions:
        every += [sentence for verdict in part.verdicts.values() for sentence in remarks(verdict)]
    sentences = dict.fromkeys(f"- {escaped(sentence)}" for sentence in every)
    return [*lines, *sentences, *([""] if sentences else [])]


def _latency(
    known: Sequence[choice.Candidate], engine: str, precision: str, load: tuple[int, str]
) -> str:
    for point in known:
        if point.point[:4] == (engine, precision, *load) and point.run != choice.SWEEP:
            return duration(point.seconds) + ("" if point.settled else UNSETTLED)
    return ""


def _size(results: Results, part: PrecisionResults, subject: str) -> str:
    kind = GRAPH.kind if subject == GRAPH_SUBJECT else ENGINE.kind
    engine = "" if subject == GRAPH_SUBJECT else subject
    for file in results.files:
        if (file.kind, file.engine, file.precision) == (kind, engine, part.name):
            return size(file.size)
    return ""


def row(cells: Sequence[str]) -> str:
    """Returns a row of a table."""
    return f"| {' | '.join(cells)} |"


def _prose(words: str) -> str:
    """Returns a sentence whose commands between backquotes stay as code."""
    parts = _COMMAND.split(words)
    return "".join(part if index % 2 else escaped(part) for index, part in enumerate(parts))


def escaped(words: str) -> str:
    """Returns a text that Markdown shows as it is, and that notifies nobody."""
    plain = _MARKUP.sub(r"\\\1", words.replace("\n", " "))
    return plain.replace("@", "@<!-- -->")

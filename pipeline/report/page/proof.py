"""Sections about what is proved: verdicts, and errors against the noise floor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from exporters import PRECISIONS
from pipeline.report import repeated, verify
from pipeline.report.page import figures
from pipeline.report.page.content import Cell, Figure, Section, Table, table
from pipeline.report.page.results import PrecisionResults, Results

if TYPE_CHECKING:
    from pipeline.verification.verdict import Verdict

# Errors in the outputs' own units, which are in the tables of errors.
_ABSOLUTE = (">rms error", ">max error")


def verdicts(results: Results) -> Section | None:
    """Returns the verdicts of each precision, with what has to be said beside them."""
    parts = [part for part in results.precisions if part.verdicts]
    if not parts:
        return None
    rms, largest = next(iter(parts[0].verdicts.values())).k
    places: dict[str, list[str]] = {}
    for part in parts:
        for sentence in dict.fromkeys(s for v in part.verdicts.values() for s in verify.remarks(v)):
            places.setdefault(sentence, []).append(part.name)
    remarks = [
        sentence if len(parts) == 1 else f"{', '.join(names)}: {sentence}"
        for sentence, names in places.items()
    ]
    return Section(
        "verdicts",
        "Verdicts",
        sentences=(
            "Each output is compared with the PyTorch model in float64. The unit of an error is the"
            " floor: how far rounding at this precision moves PyTorch's own outputs. A pass is at"
            f" most {rms:g} floors over all rows and {largest:g} on any one row; a quantized graph"
            " is judged by its accuracy.",
        ),
        tables=tuple(_verdicts(part) for part in parts),
        remarks=tuple(remarks),
    )


def _verdicts(part: PrecisionResults) -> Table:
    columns, rows = verify.cells([*part.verdicts.values()])
    kept = [index for index, column in enumerate(columns) if column not in _ABSOLUTE]
    return table(
        f"Verdicts in {part.name}",
        [columns[index] for index in kept],
        [[row[index] for index in kept] for row in rows],
    )


def builds(results: Results) -> Section | None:
    """Returns how several builds of an engine differ, and how far a further one may lie."""
    tables = []
    for part in results.precisions:
        for name, known in part.builds.items():
            cells = repeated.cells(*repeated.rows_of(known))
            tables.append(table(f"{name} in {part.name}", *cells))
    if not tables:
        return None
    return Section(
        "builds",
        "Several builds",
        sentences=(
            "Each build was made with empty caches; the first one is kept. A further build is"
            " accepted up to the limits in the last row.",
        ),
        tables=tuple(tables),
    )


def noise(results: Results) -> Section | None:
    """Returns the errors in units of the noise floor, for graphs that only round."""
    drawn: list[Figure] = []
    tables: list[Table] = []
    for part in results.precisions:
        judged = [verdict for verdict in part.verdicts.values() if verdict.outputs]
        if not judged:
            continue
        tables.append(_errors(part, judged))
        title = f"Errors in {part.name}, in noise floors"
        text = _words(part, judged)
        limited = not PRECISIONS[part.name].quantized
        drawn.append(figures.noise(part.name, title, judged, text, limited=limited))
    if not tables:
        return None
    sentences = []
    if any(PRECISIONS[part.name].quantized for part in results.precisions):
        sentences.append(
            "A quantized graph has no limits here, since it is judged by its accuracy."
        )
    return Section(
        "noise", "Error against the noise floor", tuple(sentences), tuple(drawn), tuple(tables)
    )


def _words(part: PrecisionResults, judged: Sequence[Verdict]) -> str:
    outputs = [output for verdict in judged for output in verdict.outputs]
    parts = zip(
        ("over all rows", "on one row"),
        (
            max(output.rms_ratio for output in outputs),
            max(output.max_ratio for output in outputs),
        ),
        judged[0].k,
        strict=True,
    )
    texts = [
        f"the largest {where} is {verify.ratio_text(value)}"
        + ("" if PRECISIONS[part.name].quantized else f" and the limit {limit:g}")
        for where, value, limit in parts
    ]
    return f"In units of the noise floor, {'; '.join(texts)}. The table has each value."


def _errors(part: PrecisionResults, judged: Sequence[Verdict]) -> Table:
    rows = []
    for verdict in judged:
        for output in verdict.outputs:
            above = output.rms_ratio > verdict.k[0], output.max_ratio > verdict.k[1]
            marks = [
                "bad" if over and not PRECISIONS[part.name].quantized else "" for over in above
            ]
            rows.append(
                (
                    verdict.subject,
                    output.label,
                    Cell(verify.ratio_text(output.rms_ratio), status=marks[0]),
                    Cell(verify.ratio_text(output.max_ratio), status=marks[1]),
                    f"{output.rms:.2e}",
                    f"{output.max:.2e}",
                    f"{output.scale:.2e}",
                    output.worst if math.isfinite(output.max) else "",
                    ", ".join(map(str, verdict.batches)),
                    f"{output.incomparable:,}" if output.incomparable else "",
                )
            )
    columns = (
        "subject",
        "output",
        ">rms x floor",
        ">max x floor",
        ">rms error",
        ">max error",
        ">rms of the output",
        "worst row",
        "batches",
        ">rows not compared",
    )
    return table(f"Errors in {part.name}", columns, rows, folded=True)

"""The report of a bisection: the error along the graph as a table and a plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cache import write_atomic
from engines.checks import import_vendor
from engines.errors import DeployError, ParityError, UsageError
from pipeline.report.verify import ratio_text
from pipeline.workflow import console
from pipeline.workflow.artifacts import GRAPH_SUBJECT

if TYPE_CHECKING:
    from pipeline.verification.bisection.search import Bisection

_FORMATS = (".svg", ".png", ".pdf")
# No date, so that the same values give the same file.
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_BAR = 10  # length in characters of a bar for an error at the limit


def show(search: Bisection, subject: str) -> None:
    """Prints a row for each value up to the first that differs from the model, and two more.

    Args:
        subject: The name of the engine that ran the graph, or "graph".
    """
    first = search.first
    last = len(search.steps) if first is None else search.steps.index(first) + 3
    rows = []
    for step in search.steps[:last]:
        bar = "#" * min(round(step.ratio * _BAR), 2 * _BAR)
        numbers = (f"{step.error:.1e}", ratio_text(step.ratio))
        rows.append((step.node, step.operator, step.module, *numbers, bar))
    columns = ("node", "operator", "module", ">total error", ">own error / limit", "")
    console.table("Error along the graph", columns, rows, ("", "module"))
    if len(search.steps) > last:
        console.result(f"{len(search.steps) - last} more values follow")
    if search.translation:
        console.result(search.translation)
    if first is None and not search.translation:
        console.result(f"all {len(search.steps)} compared values match the model")
        if search.unmatched:
            console.result(
                f"{len(search.unmatched)} nodes have no value of the same name in the model; their"
                " errors show only in the values computed from theirs"
            )
        if subject != GRAPH_SUBJECT:
            console.result(
                f"reading the values may keep {subject} from fusing operators: an error that only"
                " a fused kernel makes does not show here"
            )
    if first is None:
        return
    where = f" ({first.module})" if first.module else ""
    console.result(f"first: {first.operator} node {first.node!r}{where}: {first.fault}")
    console.result(search.opinion)


def check_plot(path: Path) -> None:
    """Checks that `plot` can write a file of this name.

    Raises:
        UsageError: matplotlib does not write this format, or the folder does not exist.
        NotAvailableError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"{path}: unknown plot format {path.suffix!r}",
            f"available: {', '.join(_FORMATS)}",
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.absolute().parent} is not a folder", "create it first")
    import_vendor("matplotlib", "pip install matplotlib")


def plot(search: Bisection, path: Path) -> None:
    """Plots each value's total error, and its node's own error in units of the limit.

    Raises:
        DeployError: The file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    places = range(1, len(search.steps) + 1)
    above.plot(places, [step.error or None for step in search.steps], ".-", color="tab:blue")
    above.set_yscale("log")
    above.set_ylabel("total error,\nrelative to the value's size")
    below.plot(places, [step.ratio or None for step in search.steps], ".", color="tab:blue")
    below.axhline(1, color="tab:red", linewidth=1)
    below.set_yscale("log")
    below.set_ylabel("own error of the node,\nin units of the limit")
    below.set_xlabel("values of the graph, in order of computation")
    first = search.first
    if first is not None:
        for axes in (above, below):
            axes.axvline(search.steps.index(first) + 1, color="tab:red", linestyle="--")
        above.set_title(
            f"first: {first.operator} {first.node!r}, {first.fault}", fontsize=9, parse_math=False
        )
    try:
        with write_atomic(path) as part:
            figure.savefig(
                part, format=path.suffix[1:].lower(), metadata=_UNDATED.get(path.suffix.lower())
            )
    except OSError as error:
        raise DeployError(f"{path} cannot be written: {error}") from error
    console.result(f"plot: {path}")


def raise_not_comparable(graph: str, others: str) -> None:
    """Raises ParityError for a graph that does not take the golden inputs.

    Args:
        others: Faults of weights and signature, in words.
    """
    raise ParityError(f"{graph} cannot be run on the golden inputs: {others}", "export it again")


def require_match(search: Bisection, graph: str, others: str) -> None:
    """Raises ParityError if a value differs from the model, or `others` is not empty.

    Args:
        others: Faults of weights and signature, in words.
    """
    first = search.first
    if first is not None:
        raise ParityError(
            f"{graph} first differs from the model at {first.operator} node {first.node!r}:"
            f" {first.fault}",
            search.opinion,
            document(search),
        )
    if search.translation:
        raise ParityError(
            f"{graph} is not the model: {search.translation}",
            "no node of the graph is at fault; write the operator with others, or try another"
            " --opset or --exporter",
            document(search),
        )
    if others:
        raise ParityError(
            f"every value of {graph} is within the rounding of the model, but {others}",
            "export it again",
            document(search),
        )


def document(search: Bisection) -> dict[str, Any]:
    """Returns the JSON form."""
    first = search.first
    return {
        **dataclasses.asdict(search),
        "first": None if first is None else dataclasses.asdict(first),
    }

"""How the error grows along a graph, as a table and a plot."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cache import write_atomic
from engines.checks import import_vendor
from engines.errors import DeployError, ParityError, UsageError
from pipeline.workflow import console
from pipeline.workflow.artifacts import GRAPH_SUBJECT

if TYPE_CHECKING:
    from pipeline.verification.bisection.search import Bisection

_FORMATS = (".svg", ".png", ".pdf")
# The same values give the same file.
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_BAR = 10  # characters for the largest error that is allowed


def show(search: Bisection, subject: str) -> None:
    """Prints a row for each value up to the first that is not the model's, and two more."""
    first = search.first
    last = len(search.steps) if first is None else search.steps.index(first) + 3
    rows = []
    for step in search.steps[:last]:
        bar = "#" * min(round(step.ratio * _BAR), 2 * _BAR)
        numbers = (f"{step.error:.1e}", f"{step.ratio:.2f}")
        rows.append((step.node, step.operator, step.module, *numbers, bar))
    columns = ("node", "operator", "module", ">error so far", ">own, of what is allowed", "")
    console.table("Error along the graph", columns, rows)
    if len(search.steps) > last:
        console.result(f"{len(search.steps) - last} more values follow")
    if first is None:
        console.result(f"all {len(search.steps)} values that could be compared are the model's")
        if search.unmatched:
            console.result(
                f"{len(search.unmatched)} nodes have values that the model does not know by name:"
                " they are judged by what follows from them, if anything does"
            )
        if subject != GRAPH_SUBJECT:
            console.result(
                f"values that are asked for keep {subject} from fusing the operators around them:"
                " what only a fusion does wrong is not seen here"
            )
        return
    where = f" ({first.module})" if first.module else ""
    console.result(f"first: {first.operator} node {first.node!r}{where}: {first.fault}")
    console.result(search.opinion)


def check_plot(path: Path) -> None:
    """Raises unless a plot can be drawn into a file of this name.

    Raises:
        UsageError: matplotlib does not write this format, or the folder does not exist.
        NotAvailableError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"{path}: no plot can be drawn as {path.suffix or 'a file without a suffix'}",
            f"available: {', '.join(_FORMATS)}",
        )
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{path.absolute().parent} is not a folder", "make it first")
    import_vendor("matplotlib", "pip install matplotlib")


def plot(search: Bisection, path: Path) -> None:
    """Draws the error so far, and what each node adds of what is allowed, value by value."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    places = range(1, len(search.steps) + 1)
    above.plot(places, [step.error or None for step in search.steps], ".-", color="tab:blue")
    above.set_yscale("log")
    above.set_ylabel("error so far,\nas a part of the value's size")
    below.plot(places, [step.ratio or None for step in search.steps], ".", color="tab:blue")
    below.axhline(1, color="tab:red", linewidth=1)
    below.set_yscale("log")
    below.set_ylabel("own error of the node,\nin units of what is allowed")
    below.set_xlabel("values of the graph, in the order in which they are computed")
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
    console.result(f"drawn: {path}")


def refuse(graph: str, others: str) -> None:
    """Raises ParityError for what keeps the values from being computed at all."""
    raise ParityError(
        f"{graph} cannot be followed on the golden inputs: {others}", "export it again"
    )


def require(search: Bisection, graph: str, others: str) -> None:
    """Raises ParityError if a value is not the model's, or for what no value shows.

    Args:
        others: Faults of weights and signature, in words.
    """
    first = search.first
    if first is not None:
        raise ParityError(
            f"{graph} leaves the model at {first.operator} node {first.node!r}: {first.fault}",
            search.opinion,
            document(search),
        )
    if others:
        raise ParityError(
            f"no value of {graph} is further off than rounding explains, but {others}",
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

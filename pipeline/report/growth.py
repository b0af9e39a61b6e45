"""How the error grows along a graph, as a table."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from engines.errors import ParityError
from pipeline import console

if TYPE_CHECKING:
    from pipeline.bisection import Bisection

_BAR = 10  # characters for the largest error that is allowed


def show(found: Bisection) -> None:
    """Prints a row for each value up to the first that is not the model's, and two more."""
    first = found.first
    last = len(found.steps) if first is None else found.steps.index(first) + 3
    rows = []
    for step in found.steps[:last]:
        bar = "#" * min(round(step.ratio * _BAR), 2 * _BAR)
        numbers = (f"{step.error:.1e}", f"{step.ratio:.2f}")
        rows.append((step.node, step.operator, step.module, *numbers, bar))
    columns = ("node", "operator", "module", ">error so far", ">own, of what is allowed", "")
    console.table("Error along the graph", columns, rows)
    if len(found.steps) > last:
        console.result(f"{len(found.steps) - last} more values follow")
    if first is None:
        console.result(f"all {len(found.steps)} values that could be compared are the model's")
        if found.unmatched:
            console.result(
                f"{len(found.unmatched)} nodes have values that the model does not know by name:"
                " they are judged by what follows from them, if anything does"
            )
        return
    where = f" ({first.module})" if first.module else ""
    console.result(f"first: {first.operator} node {first.node!r}{where}: {first.fault}")
    console.result(found.opinion)


def require(found: Bisection, graph: str, others: str) -> None:
    """Raises ParityError if a value is not the model's, or for what no value shows.

    Args:
        others: Faults of weights and signature, in words.
    """
    first = found.first
    if first is not None:
        raise ParityError(
            f"{graph} leaves the model at {first.operator} node {first.node!r}: {first.fault}",
            found.opinion,
        )
    if others:
        raise ParityError(
            f"no value of {graph} is further off than rounding explains, but {others}",
            "export it again",
        )


def document(found: Bisection) -> dict[str, Any]:
    """Returns the JSON form."""
    first = found.first
    return {
        **dataclasses.asdict(found),
        "first": None if first is None else dataclasses.asdict(first),
    }

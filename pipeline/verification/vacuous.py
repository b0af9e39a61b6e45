"""Whether comparing an output proves anything."""

from __future__ import annotations

from engines.contract import Array
from pipeline.golden.file import Reference


def why_vacuous(reference: Array, comparable: Array, overflowing: Array, golden: Reference) -> str:
    """Returns why comparing an output proves nothing, or "" if it proves something.

    Args:
        comparable: Mask of the rows that can be compared, `[rows]`.
        overflowing: Mask of the rows that overflow in some runs, `[rows]`.
    """
    if is_constant(reference):
        return "is the same for every input, so comparing it proves nothing"
    if (comparable & golden.common).any():
        return ""
    beyond = overflowing[golden.common]
    if beyond.all():
        return f"overflows in {golden.precision} on every input, so comparing it proves nothing"
    if beyond.any():
        return (
            f"overflows in {golden.precision} on {int(beyond.sum())} of {len(beyond)} inputs and is"
            " moved too far by rounding on the others, so comparing it proves nothing"
        )
    return "is moved so far by rounding alone, on every input, that comparing it proves nothing"


def is_constant(array: Array) -> bool:
    """Whether all rows of an output are the same."""
    return bool((array == array[:1]).all())

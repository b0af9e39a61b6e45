"""How far rounding moves each row of an output, measured by runs that are rounded otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.contract import Array

# The noise of a row that nothing can be said of: a number, and more than any output.
_BEYOND = 1e150


def measure(reference: Array, realisations: Sequence[Array]) -> Array:
    """Returns what PyTorch's own outputs, computed several times, say of the noise.

    A single run tells little of a row: its error may be near zero by chance.

    Args:
        reference: The float64 output, `[rows, ...]`.
        realisations: The output at a precision, `[rows, ...]` each, every one rounded
            differently.

    Returns:
        `[rows, 2]`: for each row the root mean square and the maximum of |p - r|, over all
        realisations.
    """
    squares = np.zeros(len(reference))
    largest = np.zeros(len(reference))
    for outputs in realisations:
        with np.errstate(invalid="ignore"):  # infinities, which make a golden file of no use
            error = difference(outputs, reference)
            squares += np.mean(np.square(error), axis=1)
            largest = np.maximum(largest, np.abs(error).max(axis=1))
    noise = np.stack([np.sqrt(squares / len(realisations)), largest], axis=1)
    # Rounded otherwise, the row overflows.
    return np.where(np.isfinite(noise), noise, _BEYOND)


def difference(outputs: Array, reference: Array) -> Array:
    """Returns outputs - reference in float64, `[rows, elements]`; never 0 for unequal integers."""
    error = outputs.astype(np.float64) - reference.astype(np.float64)
    if reference.dtype.kind in "biu":
        # Float64 holds those up to 2^53 only.
        error = np.where((error == 0) & (outputs != reference), 1.0, error)
    return by_row(error)


def by_row(array: Array) -> Array:
    """Returns an array as `[rows, elements]`; an output of one number a row has one element."""
    return array.reshape(len(array), -1)

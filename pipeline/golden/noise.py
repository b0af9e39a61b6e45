"""Measures how far rounding moves each row of an output, from runs that round differently."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engines.contract import Array
from engines.errors import DeployError

# The noise of a row that overflows in one of the runs: finite, but larger than any output.
_OVERFLOWED = 1e150


def measure(reference: Array, realisations: Sequence[Array]) -> Array:
    """Returns the rounding noise of an output, from several runs of PyTorch.

    A single run says little about a row: its error may be near zero by chance.

    Args:
        reference: The float64 output, `[rows, ...]`.
        realisations: The output at a precision, `[rows, ...]` each, every one rounded
            differently.

    Returns:
        `[rows, 2]`: for each row the root mean square and the maximum of |p - r| over all
        realisations p, with r the reference.

    Raises:
        DeployError: The output has no values.
    """
    if not reference.size:
        sizes = ", ".join(map(str, reference.shape[1:]))
        raise DeployError(
            f"an output has no values: its shape is [batch, {sizes}]",
            "return only outputs that have values",
        )
    squares = np.zeros(len(reference))
    largest = np.zeros(len(reference))
    for outputs in realisations:
        with np.errstate(invalid="ignore"):  # Inf - Inf, which ends up as overflowed
            error = difference(outputs, reference)
            squares += np.mean(np.square(error), axis=1)
            largest = np.maximum(largest, np.abs(error).max(axis=1))
    noise = np.stack([np.sqrt(squares / len(realisations)), largest], axis=1)
    return np.where(np.isfinite(noise), noise, _OVERFLOWED)


def overflowed(noise: Array) -> Array:
    """Returns a mask of the rows that overflow in some of the runs, `[rows]`.

    Args:
        noise: What `measure` returned, `[rows, 2]`.
    """
    mask: Array = noise[:, 0] >= _OVERFLOWED
    return mask


def difference(outputs: Array, reference: Array) -> Array:
    """Returns outputs - reference in float64, `[rows, elements]`; never 0 for unequal integers."""
    error = outputs.astype(np.float64) - reference.astype(np.float64)
    if reference.dtype.kind in "biu":
        # Float64 is exact for integers up to 2^53 only.
        error = np.where((error == 0) & (outputs != reference), 1.0, error)
    return by_row(error)


def by_row(array: Array) -> Array:
    """Returns an array as `[rows, elements]`; `[rows]` becomes `[rows, 1]`."""
    return array.reshape(len(array), -1)

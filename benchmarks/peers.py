"""Comparisons of outputs by fixed tolerances, as other tools do them."""

from __future__ import annotations

import numpy as np

from engines.contract import Array


def allclose(outputs: Array, wanted: Array) -> bool:
    """Whether numpy.allclose accepts the outputs, at tolerances in common use."""
    return np.allclose(outputs, wanted, rtol=1e-3, atol=1e-5)


def polygraphy(outputs: Array, wanted: Array) -> bool:
    """Whether Polygraphy's comparator accepts the outputs, at its default tolerances (1e-5 each).

    Raises:
        ImportError: Polygraphy is not installed (`pip install --no-deps polygraphy`).
    """
    from polygraphy.comparator import Comparator, RunResults
    from polygraphy.logger import G_LOGGER

    results = RunResults()
    for runner, array in (("graph", outputs), ("pytorch", wanted)):
        results.add([{"y": array}], runner_name=runner)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        return bool(Comparator.compare_accuracy(results))

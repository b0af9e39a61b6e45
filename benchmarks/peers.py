"""How others tell whether two outputs are the same: by a fixed tolerance."""

from __future__ import annotations

import numpy as np

from engines.contract import Array


def allclose(outputs: Array, wanted: Array) -> bool:
    """Whether numpy.allclose takes them for the same, at tolerances in common use."""
    return np.allclose(outputs, wanted, rtol=1e-3, atol=1e-5)


def polygraphy(outputs: Array, wanted: Array) -> bool:
    """Whether Polygraphy's own comparator does, at its default tolerances (1e-5 each).

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

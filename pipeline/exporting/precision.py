"""A model at a precision, with what that cannot hold left in fp32."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters import cast
from exporters.module import Served, batch_for
from pipeline.golden.file import EXTREMES
from pipeline.workflow import console

if TYPE_CHECKING:
    from exporters.ranges import OutOfRange
    from pipeline.golden.rows import Rows
    from pipeline.models import Model

_NAMED = 5  # how many of what is kept in fp32 are printed


def at_precision(model: Model, precision: str) -> Served:
    """Returns a model as it is exported: its network cast to a precision."""
    network = cast.cast_to_precision(model.network.eval(), precision)
    return Served(network, model.prepare, cast.dtype_of(precision)).eval()


def keep_in_range(
    model: Model, served: Served, program: Any, precision: str, rows: Rows
) -> tuple[Any, tuple[OutOfRange, ...]]:
    """Keeps those parts of a program in fp32 whose values its half type cannot hold, and says so.

    Args:
        model: In fp32.
        served: The model at the precision.
        program: Of `served`; it may be changed.
        rows: The golden inputs.

    Returns:
        The program, and the values that are kept in fp32.
    """
    # Of a thousandfold input, every layer would overflow.
    usual = ~np.isin(rows.cases, EXTREMES)
    inputs = [torch.from_numpy(array[usual]) for array in rows.inputs.values()]
    size = batch_for(served.pixels, inputs)

    def run(watched: Callable[..., object]) -> None:
        with torch.inference_mode():
            for start in range(0, len(inputs[0]), size):
                watched(*(tensor[start : start + size] for tensor in inputs))

    originals = Served(model.network, model.prepare).state_dict()
    program, kept = cast.keep_in_range(program, precision, originals, run)
    for value in kept[:_NAMED]:
        console.say(f"export: kept in fp32: {value}")
    if len(kept) > _NAMED:
        console.say(f"export: kept in fp32: {len(kept) - _NAMED} more values")
    return program, kept

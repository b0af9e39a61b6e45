"""The reference of a model at other sizes of its dynamic axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from engines.errors import DeployError
from pipeline.golden import rows as golden_rows
from pipeline.golden.file import MADE_ROW, Reference
from pipeline.golden.reference import ExactModel, measured_noise, rows_to_keep, run_all
from pipeline.models import IMAGE

if TYPE_CHECKING:
    from engines.contract import Array
    from pipeline.golden.rounding import AtPrecision
    from pipeline.models import Model

# Rows of each size.
_ROWS = 4


def add(
    reference: Reference,
    model: Model,
    served: AtPrecision,
    exact: ExactModel,
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    noise_runs: int,
) -> Reference:
    """Returns a reference that has generated rows of other sizes, too.

    Args:
        reference: At the usual size.
        served: The model as it is exported, at the precision.
        exact: The model in float64.
        shapes: By a word for the size, the shape of each input, with the batch.
        noise_runs: Runs at the precision that are rounded at random, besides the plain one.

    Raises:
        DeployError: The model does not run at another size, or every output is NaN or Inf there.
    """
    others = []
    for seed, (word, by_input) in enumerate(shapes.items(), 1):
        inputs = _made(model, reference.inputs, by_input, seed)
        tensors = [torch.from_numpy(array) for array in inputs.values()]
        where = f" at {', '.join('x'.join(map(str, s[1:])) for s in by_input.values())}"
        try:
            exactly = exact.run(tensors)
        except DeployError as error:
            raise DeployError(
                f"{error.message} ({where.strip()}; the usual size runs)",
                "take sizes from the tensors, or give Model.dynamic sizes that the model takes",
            ) from error
        native = run_all(served, tensors, exact.names, where)
        cases = tuple(f"{MADE_ROW} of the {word} size {index}" for index in range(_ROWS))
        kept = rows_to_keep(cases, native, exactly)
        if not kept.any():
            raise DeployError(f"every output is NaN or Inf{where}", "check the model at that size")
        parts = [
            {name: array[kept] for name, array in p.items()} for p in (inputs, exactly, native)
        ]
        noise = measured_noise(
            served, [torch.from_numpy(a) for a in parts[0].values()], parts[1], parts[2], noise_runs
        )
        chosen = tuple(np.array(cases)[kept].tolist())
        others.append(reference.at_size(chosen, parts[0], parts[1], parts[2], noise))
    complete = dataclasses.replace(reference, others=tuple(others))
    return complete.checked("model", "check it at the sizes of Model.dynamic")


def _made(
    model: Model,
    known: Mapping[str, Array],
    shapes: Mapping[str, Sequence[int]],
    seed: int,
) -> dict[str, Array]:
    if model.image is not None:
        channels, height, width = shapes[IMAGE][1:]
        return {IMAGE: golden_rows.made_images((channels, height, width), _ROWS, seed)}
    return golden_rows.made_like(known, _ROWS, seed, {n: tuple(s[1:]) for n, s in shapes.items()})

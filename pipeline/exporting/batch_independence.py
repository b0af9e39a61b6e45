"""Whether a model computes each row from its own inputs alone, as a server needs it to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from engines.errors import DeployError
from exporters import PRECISIONS
from pipeline.verification import limits, noise_floor

if TYPE_CHECKING:
    from pipeline.golden.file import Reference
    from pipeline.golden.reference import ExactModel


def check_rows_alone(exact: ExactModel, reference: Reference) -> None:
    """Raises DeployError if a row's outputs depend on the others of its batch.

    Rows from all over are computed alone: a model that chooses its way by all that it is given
    may happen to go the same one with the first. Not looked at are rows that cannot be compared:
    what blows rounding up that far does so in float64, too, which rounds another way alone.
    """
    precision = PRECISIONS[reference.precision].computed_in
    comparable = {
        name: noise_floor.floor(array, reference.noise[name], precision).comparable
        for name, array in reference.reference.items()
    }
    inputs = [torch.from_numpy(array) for array in reference.inputs.values()]
    last = len(reference.cases) - 1
    for row in map(int, np.unique(np.linspace(0, last, limits.ROWS_ALONE).astype(np.int64))):
        known = {name: a for name, a in reference.reference.items() if comparable[name][row]}
        if differing := exact.differing(known, inputs, row, limits.ALONE_TOLERANCE):
            raise DeployError(
                f"{differing[0]} of one row depends on the other rows of its batch",
                "a server puts any rows into a batch; compute each from its own inputs alone",
            )

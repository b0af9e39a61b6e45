"""Checks that a model computes each row from its own inputs alone, as serving requires."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from engines.errors import DeployError
from exporters import PRECISIONS
from pipeline.verification import limits, noise_floor
from pipeline.workflow import phases

if TYPE_CHECKING:
    from pipeline.golden.file import Reference
    from pipeline.golden.reference import ExactModel


def check_rows_alone(exact: ExactModel, reference: Reference) -> None:
    """Raises DeployError if a row's outputs depend on the other rows of its batch.

    The rows that are computed alone are spread over the reference: a model that branches on its
    whole batch may happen to take the same branch for the first row alone. Rows beyond comparison
    are skipped: they amplify float64 rounding as well, which differs in a batch of one.
    """
    precision = PRECISIONS[reference.precision].computed_in
    comparable = {
        name: noise_floor.floor(array, reference.noise[name], precision).comparable
        for name, array in reference.reference.items()
    }
    inputs = [torch.from_numpy(array) for array in reference.inputs.values()]
    last = len(reference.cases) - 1
    phases.start("rows alone in float64", limits.ROWS_ALONE)
    for row in map(int, np.unique(np.linspace(0, last, limits.ROWS_ALONE).astype(np.int64))):
        known = {name: a for name, a in reference.reference.items() if comparable[name][row]}
        if differing := exact.differing(known, inputs, row, limits.ALONE_TOLERANCE):
            raise DeployError(
                f"output {differing[0]!r} of a row depends on the other rows of its batch",
                _hint(exact.network),
            )


def _hint(network: nn.Module) -> str:
    """Returns what to change in a network whose rows depend on each other."""
    for path, module in network.named_modules():
        # PyTorch then computes a batch in another way if every mask in it pads at the end only.
        if isinstance(module, nn.TransformerEncoder) and getattr(
            module, "use_nested_tensor", False
        ):
            return (
                f"give nn.TransformerEncoder{f' ({path})' if path else ''}"
                " enable_nested_tensor=False: with it, the outputs at padded positions depend on"
                " the masks of the whole batch"
            )
    return "a server batches arbitrary rows; compute each row from its own inputs alone"

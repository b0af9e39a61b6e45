"""A module becomes a torch.export program with a dynamic batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from engines.base import TensorSpec
from engines.errors import DeployError
from engines.pytorch import SIGNATURE

# Not 1, which torch.export would take for a constant; and two rows show a batch-mixing model.
_EXAMPLE_BATCH = 2


def export_program(module: nn.Module, inputs: tuple[TensorSpec, ...]) -> Any:
    """Traces a module into a torch.export program.

    Args:
        module: In evaluation mode.
        inputs: One entry a positional argument; a None axis is the batch.

    Raises:
        DeployError: The module cannot be traced, or fixes its batch to a constant.
    """
    examples = tuple(_example(spec) for spec in inputs)
    # DYNAMIC, unlike AUTO or a named Dim, is an error where the model fixes the axis.
    shapes = tuple(
        {index: torch.export.Dim.DYNAMIC for index, axis in enumerate(spec.shape) if axis is None}
        for spec in inputs
    )
    try:
        return torch.export.export(module, examples, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises many types, some of them private
        raise DeployError(
            f"torch.export cannot trace the model with a dynamic batch: {error}",
            "control flow that depends on values, or a reshape to a fixed batch, are the"
            " usual causes",
        ) from error


def _example(spec: TensorSpec) -> torch.Tensor:
    shape = [_EXAMPLE_BATCH if axis is None else axis for axis in spec.shape]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def save_program(
    program: Any, path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Saves a program together with the names, dtypes and shapes of its inputs and outputs."""
    signature = {
        "inputs": [vars(spec) for spec in inputs],
        "outputs": [vars(spec) for spec in outputs],
    }
    with path.open("wb") as file:  # an open file, since a path would have to end in .pt2
        torch.export.save(program, file, extra_files={SIGNATURE: json.dumps(signature)})

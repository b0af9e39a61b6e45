"""Checks that a model gives the same outputs again, and says why if it does not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engines.errors import DeployError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from engines.contract import Array

_NAMED = 3  # how many of a network's changing values an error names


def check_repeats(network: nn.Module, run: Callable[[], dict[str, Array]]) -> None:
    """Raises DeployError if two runs give different outputs.

    Args:
        network: The network that is run. Its buffers and other values are compared, too.
        run: Runs it on some inputs, and returns the outputs by name.
    """
    once = run()
    before = _state(network)
    again = run()
    for name, outputs in once.items():
        if np.array_equal(outputs, again[name], equal_nan=outputs.dtype.kind == "f"):
            continue
        after = _state(network)
        changed = [key for key in after if key not in before or _differ(before[key], after[key])]
        if changed:
            more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
            raise DeployError(
                f"output {name!r} differs between two runs on the same inputs, since each run"
                f" changes {', '.join(changed[:_NAMED])}{more} of the network",
                "a graph keeps nothing between runs: do not assign it in forward in evaluation"
                " mode, or make it an input and an output",
            )
        raise DeployError(
            f"output {name!r} differs between two runs on the same inputs: the model is random",
            "remove random numbers from inference; no engine can be proved equal to them",
        )


def _state(network: nn.Module) -> dict[str, Any]:
    """Returns copies of a network's parameters, buffers, and attributes that are numbers."""
    state: dict[str, Any] = {}
    for path, module in network.named_modules():
        values = {**vars(module), **module._parameters, **module._buffers}
        for name, value in values.items():
            key = f"{path}.{name}" if path else name
            if isinstance(value, torch.Tensor):
                state[key] = value.detach().clone()
            elif isinstance(value, int | float):
                state[key] = value
    return state


def _differ(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return not (
            before.shape == after.shape and bool(torch.isclose(before, after, 0, 0, True).all())
        )
    return type(before) is not type(after) or before != after

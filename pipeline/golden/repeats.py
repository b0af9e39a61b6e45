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
    """Raises DeployError if two runs give different outputs, or one changes a parameter.

    Args:
        network: The network that is run. Its buffers and other values are compared, too.
        run: Runs it on some inputs, and returns the outputs by name.
    """
    before = _copied(_state(network))
    once = run()
    parameters = {name for name, _ in network.named_parameters()}
    if rewritten := [name for name in _changed(before, network) if name in parameters]:
        # Such as nn.Embedding(max_norm=…): what the network computes depends on what ran before.
        raise DeployError(
            f"each run changes parameters of the network: {_listed(rewritten)}",
            "do it once, after training, and export a network whose forward only reads them; for"
            " nn.Embedding, normalise the weights and leave out max_norm",
        )
    before = _copied(_state(network))
    again = run()
    for name, outputs in once.items():
        if np.array_equal(outputs, again[name], equal_nan=outputs.dtype.kind == "f"):
            continue
        if changed := _changed(before, network):
            raise DeployError(
                f"output {name!r} differs between two runs on the same inputs, since each run"
                f" changes {_listed(changed)} of the network",
                "a graph keeps nothing between runs: do not assign it in forward in evaluation"
                " mode, or make it an input and an output",
            )
        raise DeployError(
            f"output {name!r} differs between two runs on the same inputs: the model is random",
            "remove random numbers from inference; no engine can be proved equal to them",
        )


def _state(network: nn.Module) -> dict[str, Any]:
    """Returns a network's parameters, buffers, and attributes that are numbers or tensors."""
    state: dict[str, Any] = {}
    for path, module in network.named_modules():
        for name, value in {**vars(module), **module._parameters, **module._buffers}.items():
            if isinstance(value, torch.Tensor | int | float):
                state[f"{path}.{name}" if path else name] = value
    return state


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in state.items()
    }


def _changed(before: dict[str, Any], network: nn.Module) -> list[str]:
    """Returns the names of the values that differ from `before`."""
    after = _state(network)
    return [name for name in after if name not in before or _differ(before[name], after[name])]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"


def _differ(before: Any, after: Any) -> bool:
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        return not (
            before.shape == after.shape and bool(torch.isclose(before, after, 0, 0, True).all())
        )
    return type(before) is not type(after) or before != after

"""Casts a module's weights to fp16 or bf16, so that the graph's types state its precision.

Strongly typed backends compute each layer in the type of its tensors. The graph's inputs and
outputs keep their types; the casts are inside the graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from exporters import PRECISIONS

# A layer stays in float32 if its values exceed this fraction of the type's largest number: other
# inputs may well give values twice as large as the golden inputs do.
_HEADROOM = 0.5


def dtype_of(precision: str) -> torch.dtype:
    """Returns the dtype that a module is cast to at a precision."""
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision].dtype)
    return dtype


def cast_to_precision(
    network: nn.Module, precision: str, run: Callable[[nn.Module], object]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Returns a network cast to a precision: a copy, or in fp32 the network itself.

    Args:
        network: In float32, in evaluation mode.
        run: Runs a network on representative inputs.

    Returns:
        The network, and the paths of the layers kept in float32: on those inputs, their inputs,
        outputs or weights come near the largest number of the type.
    """
    dtype = dtype_of(precision)
    if dtype == torch.float32:
        return network, ()
    copied = copy.deepcopy(network)
    limit = torch.finfo(dtype).max * _HEADROOM
    kept = tuple(path for path, peak in _peaks(network, run).items() if peak > limit)
    copied = copied.to(dtype)
    if kept:
        originals = dict(network.named_modules())
        for path, layer in _layers(copied).items():
            if path in kept:
                layer.load_state_dict(originals[path].state_dict(), assign=True)
                layer.float()
            # Any layer may receive the output of a float32 layer.
            _cast_inputs(layer, torch.float32 if path in kept else dtype)
    return copied, kept


def _layers(network: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules that are cast as a whole, by path: leaves, and any with own weights."""
    return {
        path: module
        for path, module in network.named_modules()
        if not any(True for _ in module.children())
        or any(True for _ in module.parameters(recurse=False))
    }


def _peaks(network: nn.Module, run: Callable[[nn.Module], object]) -> dict[str, float]:
    """Returns the largest magnitude of each layer's inputs, outputs and weights in float32.

    The output of a container module counts for the layer that ran last: it may be a sum with
    that layer's output, and a sum is in float32 if one of its terms is.
    """
    layers = _layers(network)
    peaks = {
        path: max([0.0, *(_peak(tensor) for tensor in layer.state_dict().values())])
        for path, layer in layers.items()
    }

    last = ""

    def watch(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any, outputs: Any) -> None:
            nonlocal last
            if path in layers:
                last = path
            seen = (*inputs, outputs) if path in layers else (outputs,)
            tensors = [value for value in seen if isinstance(value, torch.Tensor)]
            if last:
                peaks[last] = max([peaks[last], *map(_peak, tensors)])

        return hook

    modules = network.named_modules()
    hooks = [module.register_forward_hook(watch(path)) for path, module in modules]
    try:
        run(network)
    finally:
        for hook in hooks:
            hook.remove()
    return peaks


def _peak(tensor: torch.Tensor) -> float:
    if not tensor.is_floating_point() or not tensor.numel():
        return 0.0
    return float(tensor.detach().abs().max())


def _cast_inputs(layer: nn.Module, dtype: torch.dtype) -> None:
    def cast(_layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(
            value.to(dtype)
            # A cast to the same type would stay in the graph and prevent folds.
            if isinstance(value, torch.Tensor)
            and value.is_floating_point()
            and value.dtype != dtype
            else value
            for value in inputs
        )

    layer.register_forward_pre_hook(cast)

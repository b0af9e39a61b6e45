"""Whether a step of training fits in memory, before the kernel ends the process instead."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from engines import machine
from engines.errors import DeployError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.loop import Samples, Settings

# Rows of the trial: enough for a batch norm.
_TRIAL = 2
# Gradients of activations come on top of the activations kept for them, a layer at a time.
_MARGIN = 1.25


def check(
    network: nn.Module, prepare: nn.Module | None, samples: Samples, settings: Settings
) -> None:
    """Raises DeployError if a batch would need more memory than the CPU has free.

    A GPU says so itself. Linux hands out more than it has, and then kills the process; so the
    bytes that autograd keeps for two samples are counted, and scaled to the batch.
    """
    if settings.device != "cpu":
        return
    batch = min(settings.batch_size, len(samples.targets))
    needed = int(_kept_per_sample(network, prepare, samples) * batch * _MARGIN)
    needed += 2 * sum(each.nbytes for each in network.parameters())  # gradient and its update
    free = machine.free_memory()
    if needed > free:
        raise DeployError(
            f"a batch of {batch:,} needs about {needed / 2**30:.1f} GiB of memory,"
            f" {free / 2**30:.1f} GiB are free",
            "use a smaller --batch-size",
        )


def _kept_per_sample(network: nn.Module, prepare: nn.Module | None, samples: Samples) -> float:
    """Returns the bytes that autograd keeps of a forward pass, for each sample."""
    import torch

    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    # A copy, and the random numbers put back: the trial must leave no trace in the training.
    trial = copy.deepcopy(network).train()
    parameters = {each.untyped_storage().data_ptr() for each in trial.parameters()}
    inputs = samples.inputs[:1].repeat(_TRIAL, *[1] * (samples.inputs.ndim - 1))
    with torch.random.fork_rng(devices=[]):
        prepared = inputs if prepare is None else prepare(inputs)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trial(prepared)
    return sum(size for place, size in seen.items() if place not in parameters) / _TRIAL

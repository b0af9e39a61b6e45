"""The memory of a step of training: whether it fits, its layout, that it is asked for once."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engines import hardware
from engines.errors import DeployError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.settings import Samples, Settings

# Rows of the trial: enough for a batch norm.
_TRIAL = 2
# Gradients of activations come on top of the activations kept for them, a layer at a time.
_MARGIN = 1.25
# Parameters of glibc's mallopt, from malloc.h.
_MMAP_MAX, _TRIM_THRESHOLD, _MMAP_THRESHOLD = -4, -1, -3
_MMAPS = 65536  # glibc's default
_NEVER = 2**31 - 1
_LARGE = 32 << 20  # the highest threshold that it takes


def check(
    network: nn.Module, prepare: nn.Module | None, samples: Samples, settings: Settings
) -> int:
    """Returns about how many bytes a step of training takes of the CPU's memory.

    A GPU says itself when it has too little. Linux hands out more than it has, and then kills
    the process; so the bytes that autograd keeps for two samples are counted, and scaled to the
    batch.

    Raises:
        DeployError: A batch would need more memory than the CPU has free.
    """
    if settings.device != "cpu":
        return 0
    batch = min(settings.batch_size, len(samples.targets))
    needed = int(_kept_per_sample(network, prepare, samples) * batch * _MARGIN)
    needed += 2 * sum(
        parameter.nbytes for parameter in network.parameters()
    )  # gradient and its update
    free = hardware.free_memory()
    if needed > free:
        raise DeployError(
            f"a batch of {batch:,} needs about {needed / 2**30:.1f} GiB of memory,"
            f" {free / 2**30:.1f} GiB are free",
            "use a smaller --batch-size",
        )
    return needed


@contextmanager
def kept(needed: int) -> Iterator[None]:
    """Keeps freed memory in the process for the next step, where the C library is glibc.

    glibc gives large blocks back as they are freed, and the kernel clears every page anew when
    the next step asks for it: a quarter to a half of the time of a step on two cores.

    Args:
        needed: Bytes that a step takes. The largest blocks are kept too if twice that is free:
            a heap that holds them is fragmented by up to a half.
    """
    libc = ctypes.CDLL(None)
    if not needed or not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    libc.mallopt(_MMAP_THRESHOLD, _LARGE)
    if 2 * needed < hardware.free_memory():
        libc.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_MAX, _MMAPS)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGE)  # as glibc sets it by itself
        libc.malloc_trim(0)


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Returns `[batch, channels, height, width]` in the order that convolutions are fastest in.

    A single channel lies in both orders at once, and torch takes it for the slow one, which all
    layers after it then keep, unless its strides say otherwise.
    """
    import torch

    _, channels, height, width = images.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return images.contiguous(memory_format=torch.channels_last).as_strided(images.shape, strides)


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
    parameters = {parameter.untyped_storage().data_ptr() for parameter in trial.parameters()}
    inputs = samples.inputs[:1].repeat(_TRIAL, *[1] * (samples.inputs.ndim - 1))
    with torch.random.fork_rng(devices=[]):
        prepared = inputs if prepare is None else prepare(inputs)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trial(prepared)
    return sum(size for place, size in seen.items() if place not in parameters) / _TRIAL

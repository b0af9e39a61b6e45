"""The memory of a training step: whether it fits, its layout, and its reuse."""

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

# Samples of the trial: batch norm needs two.
_TRIAL = 2
# Gradients of activations exist one layer at a time, besides the activations.
_MARGIN = 1.25
# Parameters of glibc's mallopt, from malloc.h.
_MMAP_MAX, _TRIM_THRESHOLD, _MMAP_THRESHOLD = -4, -1, -3
_MMAPS = 65536  # glibc's default
_NEVER = 2**31 - 1
_LARGE = 32 << 20  # the highest threshold that glibc accepts


def check(
    network: nn.Module, prepare: nn.Module | None, samples: Samples, settings: Settings
) -> int:
    """Estimates the bytes of CPU memory that a training step needs; 0 for other devices.

    A GPU reports that it is out of memory, but Linux overcommits and then kills the process. So
    this counts the bytes that autograd saves for two samples, and scales them to the batch.

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
    """Keeps freed memory in the process for the next step, if the C library is glibc.

    glibc returns large blocks to the kernel when they are freed, and the kernel clears every page
    when the next step asks for it: a quarter to a half of a step's time on two cores.

    Args:
        needed: Bytes that a step needs. The largest blocks are kept, too, if twice as much is
            free: up to half of a heap that holds them is lost to fragmentation.
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
    """Returns `[batch, channels, height, width]` in channels_last, convolutions' fastest layout.

    A single channel has the same layout in both formats. torch takes it for the slower one, and
    all later layers follow, unless the strides are set explicitly.
    """
    import torch

    _, channels, height, width = images.shape
    strides = (height * width * channels, 1, width * channels, channels)
    return images.contiguous(memory_format=torch.channels_last).as_strided(images.shape, strides)


def _kept_per_sample(network: nn.Module, prepare: nn.Module | None, samples: Samples) -> float:
    """Returns the bytes per sample that autograd saves in a forward pass."""
    import torch

    seen: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    # On a copy, and with the random numbers restored, so that the training is not changed.
    trial = copy.deepcopy(network).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in trial.parameters()}
    inputs = samples.inputs[:1].repeat(_TRIAL, *[1] * (samples.inputs.ndim - 1))
    with torch.random.fork_rng(devices=[]):
        prepared = inputs if prepare is None else prepare(inputs)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trial(prepared)
    return sum(size for place, size in seen.items() if place not in parameters) / _TRIAL

"""Mixed precision and TF32 in training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from engines.backends.pytorch import exact_fp32

if TYPE_CHECKING:
    import torch

    from pipeline.training.settings import Settings


def autocast(settings: Settings, device: torch.device) -> AbstractContextManager[Any]:
    """Returns the context of a forward pass: torch.autocast if `amp` asks for it."""
    import torch

    from exporters.cast import dtype_of

    if settings.amp == "none":
        return nullcontext()
    dtype = dtype_of(settings.amp)
    # No cache of casts on a GPU: a captured step must contain its own casts.
    context: AbstractContextManager[Any] = torch.autocast(
        device.type, dtype, cache_enabled=device.type == "cpu"
    )
    return context


@contextmanager
def tf32(settings: Settings) -> Iterator[None]:
    """Sets whether a GPU may compute in TF32 inside the block; forbids it afterwards."""
    import torch

    torch.backends.cudnn.allow_tf32 = settings.tf32
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    try:
        yield
    finally:
        exact_fp32(torch)

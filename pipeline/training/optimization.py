"""The optimizer, its learning rate, what is trained, and the augmentation of images."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pipeline.training.settings import Settings

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("constant", "cosine")
AUGMENTATIONS = ("none", "flip-crop", "trivial")
# Images are padded by an eighth of their sides (4 pixels of 32, as is usual) before the crop.
_PADDING = 8


def make_optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Returns the optimizer of the parameters that are trained."""
    import torch

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # Fused: on a CPU, one call per parameter costs a small network 4 % of its time.
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.SGD(
        trained,
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Returns the learning rate of a step.

    With "cosine", it falls from `lr` to nearly 0: `lr (1 + cos(pi step / steps)) / 2` (Loshchilov
    and Hutter, 2017, without restarts).

    Args:
        step: Number of the step over all epochs, from 0.
        steps: How many steps the training has.
    """
    if settings.schedule == "cosine":
        return settings.lr * (1 + math.cos(math.pi * step / steps)) / 2
    return settings.lr


def freeze(network: nn.Module, trained: nn.Module) -> None:
    """Leaves only the parameters of `trained` to be trained, a module inside the network."""
    network.requires_grad_(False)
    trained.requires_grad_(True)


def set_training(network: nn.Module, *, frozen: bool = False) -> None:
    """Puts a network into training mode, except modules of which nothing is trained.

    Batch norm in training mode would change its statistics, though its weights are frozen.

    Args:
        frozen: `freeze` was called, so that batch norm without weights is frozen, too.
    """
    network.train()
    for module in network.modules():
        state = [*module.parameters(), *(module.buffers() if frozen else ())]
        if state and not any(tensor.requires_grad for tensor in state):
            module.eval()


def augmentation(
    settings: Settings, shape: tuple[int, ...]
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Returns what changes a batch of uint8 images `[batch, *shape]`; None for nothing.

    Each image is changed by itself, with torch's generator.
    """
    if settings.augment == "none":
        return None
    import torch
    from torchvision.transforms import v2

    if settings.augment == "trivial":
        transform: Callable[[torch.Tensor], torch.Tensor] = v2.TrivialAugmentWide()
    else:
        height, width = shape[1:]
        padding = [max(1, width // _PADDING), max(1, height // _PADDING)]
        transform = v2.Compose(
            [
                v2.RandomCrop((height, width), padding=padding, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
            ]
        )
    return lambda images: torch.stack([transform(image) for image in images])

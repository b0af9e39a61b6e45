"""The module that is exported: preprocessing and network in one."""

from __future__ import annotations

import torch
from torch import nn


class Preprocess(nn.Module):
    """Turns a raw uint8 image batch into what a network was trained on: floats in 0 to 1.

    Attributes:
        dtype: The type in which it computes.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Takes uint8 `[batch, channels, height, width]`; divides by 255."""
        return image.to(self.dtype) / 255

    @property
    def description(self) -> str:
        """The preprocessing in words, for the graph's metadata."""
        return "uint8 image / 255"


class Served(nn.Module):
    """A network behind its preprocessing: raw images in, logits out."""

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.prepare = Preprocess(dtype)
        self.network = network.to(dtype)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Takes uint8 `[batch, channels, height, width]`, gives logits `[batch, classes]`."""
        logits: torch.Tensor = self.network(self.prepare(image))
        return logits

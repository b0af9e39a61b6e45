"""What the networks of Dive into Deep Learning share: initial weights, the residual block."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def xavier_uniform(net: nn.Module) -> nn.Module:
    """Initialises all convolutions and fully connected layers; returns the network."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
    return net


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, added to their input (section 8.6).

    Attributes:
        conv3: A 1x1 convolution that fits the input to the sum where channels or stride
            change; else None.
    """

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv3 = None
        if stride != 1 or in_channels != channels:
            self.conv3 = nn.Conv2d(in_channels, channels, kernel_size=1, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes `[batch, in_channels, h, w]`, gives `[batch, channels, h/stride, w/stride]`."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + (x if self.conv3 is None else self.conv3(x)))

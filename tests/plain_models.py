"""Models that a user may well write, and that an exporter may trip over."""

SOURCE = """
import numpy as np
import torch
from torch import nn

from pipeline.models import Model

RANDOM = np.random.default_rng(0)


def rows(*shape, dtype=np.float32):
    return RANDOM.normal(size=(4, *shape)).astype(dtype)


class Rotary(nn.Module):
    def __init__(self):
        super().__init__()
        angles = torch.outer(torch.arange(6.0), 10.0 ** -torch.arange(4.0))
        self.register_buffer("table", torch.polar(torch.ones_like(angles), angles))
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        x = self.linear(x)
        pairs = torch.view_as_complex(x.float().unflatten(-1, (4, 2))).to(torch.complex64)
        return torch.view_as_real(pairs * self.table).flatten(2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, mask):
        return self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]


class Causal(Attention):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(6))

    def forward(self, x):
        return self.attention(x, x, x, attn_mask=self.mask, need_weights=False)[0]


class Filled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, mask):
        scores = self.linear(x) @ x.mT + torch.where(mask, -1e9, 0.0)[:, None]
        return scores.softmax(-1) @ x


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return {"values": self.linear(x), "constant": torch.ones_like(x) * 3}


class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.full((8,), torch.finfo(torch.float32).max))

    def forward(self, x):
        return torch.sigmoid(x) * self.scale


class Complex(nn.Module):
    def forward(self, x):
        return torch.complex(x, x)


padding = np.array([[False] * (6 - count) + [True] * count for count in (0, 1, 2, 5)])
rotary = lambda: Model(network=Rotary(), inputs={"x": rows(6, 8)})
attention = lambda: Model(network=Attention(), inputs={"x": rows(6, 8), "mask": padding})
filled = lambda: Model(network=Filled(), inputs={"x": rows(6, 8), "mask": padding})
causal = lambda: Model(network=Causal(), inputs={"x": rows(6, 8)})
constant = lambda: Model(network=Constant(), inputs={"x": rows(8)})
huge = lambda: Model(network=Huge(), inputs={"x": rows(8)})
complex_output = lambda: Model(network=Complex(), inputs={"x": rows(8)})
transposed = lambda: Model(
    network=nn.Sequential(nn.ConvTranspose2d(8, 8, 3, padding=1, groups=4), nn.Conv2d(8, 4, 3)),
    inputs={"x": rows(8, 6, 6)},
)
"""

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


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 24)

    def forward(self, x, mask):
        parts = self.linear(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask[:, None, None])
        return out.transpose(1, 2).flatten(2)


class Masked3d(Masked):
    def forward(self, x, mask):
        parts = self.linear(x).chunk(3, -1)
        mask = mask[:, None].expand(-1, x.shape[1], -1)
        return nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask)


class Sharp(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.linear(x)[:, None].chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q * 400, k * 400, v)[:, 0]


class Overflow(nn.Module):
    def forward(self, x):
        big = x * 1e20
        return big * big / 1e30


class Grouped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.again = nn.GroupNorm(2, 8), nn.GroupNorm(4, 8)

    def forward(self, x):
        return self.again(self.second(self.norm(self.first(x)).relu())).mean((2, 3))


class Zeros(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        start = torch.zeros(x.shape[0], 8)
        return self.linear(torch.stack([self.linear(x), start]).sum(0))


class Table(Zeros):
    def __init__(self):
        super().__init__()
        self.table = torch.eye(8)

    def forward(self, x):
        return self.linear(x) @ self.table


class Float(Zeros):
    def forward(self, x):
        return self.linear(self.linear(x).float().softmax(-1))


class Fill(Zeros):
    def forward(self, x):
        return self.linear(x).masked_fill(x > 1, -1e9).softmax(-1)


class HalfInside(Zeros):
    def forward(self, x):
        return self.linear(x.half()).float()


class Counter(Zeros):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count += 1
        return self.linear(x) * self.count


class Steps(Zeros):
    steps = 0

    def forward(self, x):
        self.steps += 1
        return self.linear(x) * self.steps


class Unread(Counter):
    # Its output does not depend on the buffer that it changes; a value overflows in fp16.
    def forward(self, x):
        self.count += 1
        return self.linear(x) * 1e6


class Normed(nn.Module):
    # A run rewrites the rows of the table that it reads.
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 8, max_norm=1.0)

    def forward(self, x):
        return self.table(x).mean(1)


class InPlace(Zeros):
    def forward(self, x):
        x -= 1
        return self.linear(x)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(8, 4, batch_first=True)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        return self.recurrent(packed)[1][0]


class CausalEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 1)

    def forward(self, x):
        return self.layers(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[0]))


class Padded(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1)

    def forward(self, x, mask):
        return self.layers(x, src_key_padding_mask=mask)


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x.flatten(1)).abs()


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3)

    def forward(self, picture):
        return self.convolution(picture.float() / 255)


class Holder(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


def mlp():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def scripted():
    return Holder(torch.jit.script(mlp().eval()))


def quantized():
    return torch.ao.quantization.quantize_dynamic(mlp().eval(), {nn.Linear})


def program():
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    return torch.export.export(mlp().eval(), (torch.ones(2, 8),), dynamic_shapes=dynamic).module()


def vector(network, **more):
    return Model(network=network, inputs={"x": rows(8)}, **more)


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
keys = np.array([[True] * 6, [False] * 6, [True] * 3 + [False] * 3, [False] * 5 + [True]])
masked = lambda: Model(network=Masked(), inputs={"x": rows(6, 8), "mask": keys})
masked_3d = lambda: Model(network=Masked3d(), inputs={"x": rows(6, 8), "mask": keys})
unmasked = lambda: Model(network=Attention(), inputs={"x": rows(6, 8), "mask": ~keys})
sharp = lambda: Model(network=Sharp(), inputs={"x": rows(6, 8)})
overflow = lambda: vector(Overflow())
padded = lambda: Model(network=Padded(), inputs={"x": rows(6, 8), "mask": padding})
causal_encoder = lambda: Model(network=CausalEncoder(), inputs={"x": rows(6, 8)})
spectrum = lambda: Model(network=Spectrum(), inputs={"x": rows(7)})
pixels = lambda: Model(
    network=Pixels(), inputs={"picture": RANDOM.integers(0, 256, (4, 3, 8, 8)).astype(np.uint8)}
)
grouped = lambda: Model(network=Grouped(), inputs={"x": rows(3, 8, 8)})
zeros = lambda: vector(Zeros())
table = lambda: vector(Table())
cast_to_float = lambda: vector(Float())
fill = lambda: vector(Fill())
half_inside = lambda: vector(HalfInside().half())
half = lambda: vector(mlp().half())
bfloat16 = lambda: Model(
    network=mlp().bfloat16(), inputs={"x": torch.from_numpy(rows(8)).bfloat16()}
)
double = lambda: Model(network=mlp().double(), inputs={"x": rows(8, dtype=np.float64)})
counter = lambda: vector(Counter())
steps = lambda: vector(Steps())
unread = lambda: vector(Unread())
normed = lambda: Model(network=Normed(), inputs={"x": np.arange(20).reshape(4, 5)})
in_place = lambda: vector(InPlace())
packed = lambda: Model(
    network=Packed(), inputs={"x": rows(5, 8), "lengths": np.array([5, 3, 2, 4])}
)
same_name = lambda: vector(mlp(), outputs=("x",))
twice = lambda: vector(Constant(), outputs=("y", "y"))
torchscript = lambda: vector(scripted())
quantized_twice = lambda: vector(quantized())
exported = lambda: vector(program())
lazy = lambda: vector(nn.LazyLinear(4))
"""

"""Models of unusual types and operators."""

from pathlib import Path

SOURCE = """
import numpy as np
import torch
from torch import nn

from pipeline.models import Model


class Whole(nn.Module):
    def forward(self, x):
        return {"next": x + 1}


class Truth(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        features = self.linear(x)
        return features, features > 0


class Spectrum(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x).abs() * 2


class Determinant(nn.Module):
    def forward(self, x):
        return torch.linalg.det(x.reshape(-1, 2, 4)[:, :, :2] + torch.eye(2))


class Einsum(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        features = self.linear(x).reshape(-1, 2, 4)
        return torch.einsum("b i d, b j d -> b i j", features, features)


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        features = self.linear(x)
        return {"given": x, "first": features, "second": features}


def numbers(dtype, size=1):
    return {"x": (np.random.default_rng(0).normal(size=(4, 8)) * size).astype(dtype)}


def whole():
    rows = np.random.default_rng(0).integers(2**60, 2**61, (4, 8))
    return Model(network=Whole(), inputs={"x": rows})


def truth():
    return Model(network=Truth(), inputs=numbers(np.float32))


def spectrum():
    return Model(network=Spectrum(), inputs=numbers(np.float32))


def einsum():
    return Model(network=Einsum(), inputs=numbers("float32"))


def repeated():
    return Model(network=Repeated(), inputs=numbers("float32"))


def determinant():
    return Model(network=Determinant(), inputs=numbers(np.float32))


class Quiet(nn.Module):
    def forward(self, x):
        return torch.tanh(x.float() * 1e-3)


def large():
    return Model(network=Quiet(), inputs=numbers(np.float16, 2000))
"""


def graph_of(name: str) -> Path:
    return Path("artifacts") / name.replace(":", "-") / "fp32/model.onnx"

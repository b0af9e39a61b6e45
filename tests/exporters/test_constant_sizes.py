"""No size in a graph is computed where the batch is the only unknown one."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from engines.contract import TensorSpec
from exporters.onnx_graph import export_graph
from exporters.program import export_program


class Token(nn.Module):
    """Puts a learned token before each sequence, as vision transformers do."""

    shape = (3, 8)

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.arange(8.0).reshape(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)


class Attention(nn.Module):
    """Attention, whose translation takes the shape of the keys apart."""

    shape = (5, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return functional.scaled_dot_product_attention(parts, parts, parts)


class Filled(nn.Module):
    """Makes constants of the batch's size."""

    shape = (4,)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = x.shape[0]
        ones = torch.full((rows, 1), 2.5)
        places = torch.arange(4).unsqueeze(0).expand(rows, -1)
        return torch.cat([ones, x], 1), x + places, torch.zeros(rows, 2)


class State(nn.Module):
    """Starts a recurrent layer with zeros, whose batch is the second axis."""

    shape = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(8, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start = torch.zeros(1, x.shape[0], 3)
        return self.layer(x, (start, start))[0]


class ChannelsLast(nn.Module):
    """Pools a tensor whose channels are last in memory, to one pixel and to four."""

    shape = (6, 6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x * 2).permute(0, 3, 1, 2)
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return (pooled + functional.adaptive_avg_pool2d(x, (2, 2))).flatten(1)


class Resized(nn.Module):
    """Resizes two tensors to one size."""

    shape = (3, 4, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        smooth = functional.interpolate(x, (8, 5), mode="bilinear", align_corners=False)
        return smooth + functional.interpolate(x.relu(), (8, 5), mode="nearest")


class Pairs(nn.Module):
    """Makes a constant for each pair of rows."""

    shape = (4,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        return x + torch.ones(rows, rows).sum(1, keepdim=True)


def exported(module: nn.Module) -> tuple[nn.Module, onnx.ModelProto]:
    module.eval()
    example = torch.randn(2, *module.shape)
    outputs = module(example)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    inputs = (TensorSpec("x", "float32", (None, *module.shape)),)
    specs = tuple(
        TensorSpec(f"y{i}", "float32", (None, *y.shape[1:])) for i, y in enumerate(outputs)
    )
    program = export_program(module, [example])
    return module, next(export_graph(program, inputs, specs, {}).graphs)


def same(module: nn.Module, graph: onnx.ModelProto) -> None:
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for rows in (1, 2, 5):
        x = torch.randn(rows, *module.shape)
        x[0].view(-1)[0] = torch.inf  # what only repeats a constant must not read values
        with torch.no_grad():
            outputs = module(x)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for output, computed in zip(outputs, session.run(None, {"x": x.numpy()}), strict=True):
            np.testing.assert_allclose(computed, output.numpy(), rtol=1e-5, atol=1e-6)


def operators(graph: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in graph.graph.node}


@pytest.mark.slow(1)
@pytest.mark.parametrize("kind", [Token, Attention, Filled, State, ChannelsLast, Resized])
def test_no_size_is_computed(kind: type[nn.Module]) -> None:
    module, graph = exported(kind())
    assert not operators(graph) & {"Shape", "Size", "Range", "ConstantOfShape"}
    same(module, graph)


def test_two_unknown_sizes_stay_computed() -> None:
    module, graph = exported(Pairs())
    assert "Shape" in operators(graph)
    same(module, graph)


@pytest.mark.long
@pytest.mark.parametrize("name", ["vit", "swin", "swin_v2", "maxvit"])
def test_transformers_of_torchvision_compute_no_size(name: str) -> None:
    from torchvision import models
    from torchvision.models import swin_transformer as swin

    windows = ([4, 4], 32, [2, 2], [2, 4], [4, 4])
    makers = {
        "vit": lambda: models.VisionTransformer(64, 16, 2, 2, 32, 64),
        "swin": lambda: models.SwinTransformer(*windows),
        "swin_v2": lambda: models.SwinTransformer(
            *windows,
            block=swin.SwinTransformerBlockV2,
            downsample_layer=swin.PatchMergingV2,
        ),
        "maxvit": lambda: models.MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 16, 0.2),
    }
    module = makers[name]()
    module.shape = (3, 64, 64)
    _, graph = exported(module)
    assert not operators(graph) & {"Shape", "Size", "Range", "ConstantOfShape"}

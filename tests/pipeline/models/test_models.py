"""The zoo: shapes, initialisation and recipes of the book, and published counts."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.data.registry import Contents
from tests.conftest import Result

Assay = Callable[..., Result]

RECIPES = {"lenet": 0.1, "vgg11": 0.01, "vgg11-slim": 0.01, "resnet18": 0.01}


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_that_of_the_book(name: str) -> None:
    recipe = models.get(name).recipe
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (10, RECIPES[name], 128)


@pytest.mark.parametrize("name", ["lenet", "vgg11-slim", "resnet18"])
def test_weights_start_xavier_uniform(name: str) -> None:
    torch.manual_seed(0)
    checked = 0
    for layer in models.get(name).build(None).network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound
            checked += 1
    assert checked >= 5


@pytest.mark.slow(3)
def test_the_slim_vgg_has_a_quarter_of_the_widths() -> None:
    def widths(name: str) -> list[int]:
        net = models.get(name).build(None).network
        return [module.out_channels for module in net.modules() if isinstance(module, nn.Conv2d)]

    assert widths("vgg11") == [64, 128, 256, 256, 512, 512, 512, 512]
    assert widths("vgg11-slim") == [width // 4 for width in widths("vgg11")]


def test_a_residual_block_adds_its_input() -> None:
    from pipeline.models.zoo._book import Residual

    block = Residual(3, 3).eval()
    for parameter in (block.bn2.weight, block.bn2.bias):
        nn.init.zeros_(parameter)  # the convolutions then give zeros
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(block(x), x.relu())
    # Dive into Deep Learning, 8.6: half the size, twice the channels, by way of the 1x1
    assert Residual(3, 6, stride=2)(x).shape == (2, 6, 3, 3)


@pytest.mark.parametrize("name", ["lenet", "resnet18", "torchvision:mobilenet_v3_small"])
def test_a_model_adapts_to_channels_and_classes(name: str) -> None:
    contents = Contents((3, 40, 48), ("cat", "dog", "fish"))
    model = models.get(name).build(contents)
    images = torch.zeros((2, *contents.shape), dtype=torch.uint8)
    assert model.network.eval()(model.prepare(images)).shape == (2, 3)
    assert model.labels == contents.labels


def test_a_torchvision_model_takes_gray_images_too() -> None:
    contents = Contents((1, 28, 28), ("a", "b"))
    model = models.get("torchvision:mobilenet_v3_small").build(contents)
    prepared = model.prepare(torch.full((1, 1, 28, 28), 255, dtype=torch.uint8))
    # ImageNet's mean and standard deviation, from torchvision.
    white = (1 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert prepared.shape == (1, 3, 224, 224)
    assert np.allclose(prepared[0, :, 100, 100], white, atol=1e-6)


def test_every_classification_model_of_torchvision_is_known() -> None:
    import torchvision

    for name in torchvision.models.list_models(module=torchvision.models):
        spec = models.get(f"torchvision:{name}")
        assert spec.name == f"torchvision:{name}"
        assert not spec.trainable


@pytest.mark.filterwarnings("ignore")  # timm's own, on import
def test_a_model_of_timm() -> None:
    model = models.get("timm:resnet10t").build(None)
    images = torch.zeros((1, *model.image), dtype=torch.uint8)
    assert model.network.eval()(model.prepare(images)).shape == (1, len(model.labels))


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("torchvision:resnet19", "no classification model 'resnet19'", "'resnet"),
        ("timm:resnet10x", "timm has no model 'resnet10x'", "resnet10t"),
        ("lenet5", "unknown model 'lenet5'", "did you mean 'lenet'?"),
        ("a b:c", "unknown model 'a b:c'", "package.module:factory"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # timm's own, on import
def test_an_unknown_name_gets_a_suggestion(
    assay: Assay, name: str, message: str, hint: str
) -> None:
    result = assay("summary", name)
    assert result.code == 2
    assert message in result.err
    assert hint in result.err

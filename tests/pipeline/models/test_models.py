"""The zoo: shapes, initialisation and recipes of the book, and published counts."""

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.data.registry import Contents
from tests.conftest import Result

Assay = Callable[..., Result]

# Dive into Deep Learning, the printed output of layer_summary in 7.6, 8.2 and 8.6.
BOOK = {
    "lenet": [
        ("Conv2d", [1, 6, 28, 28]),
        ("Sigmoid", [1, 6, 28, 28]),
        ("AvgPool2d", [1, 6, 14, 14]),
        ("Conv2d", [1, 16, 10, 10]),
        ("Sigmoid", [1, 16, 10, 10]),
        ("AvgPool2d", [1, 16, 5, 5]),
        ("Flatten", [1, 400]),
        ("Linear", [1, 120]),
        ("Sigmoid", [1, 120]),
        ("Linear", [1, 84]),
        ("Sigmoid", [1, 84]),
        ("Linear", [1, 10]),
    ],
    "vgg11": [
        ("Sequential", [1, 64, 112, 112]),
        ("Sequential", [1, 128, 56, 56]),
        ("Sequential", [1, 256, 28, 28]),
        ("Sequential", [1, 512, 14, 14]),
        ("Sequential", [1, 512, 7, 7]),
        ("Flatten", [1, 25088]),
        ("Linear", [1, 4096]),
        ("ReLU", [1, 4096]),
        ("Dropout", [1, 4096]),
        ("Linear", [1, 4096]),
        ("ReLU", [1, 4096]),
        ("Dropout", [1, 4096]),
        ("Linear", [1, 10]),
    ],
    "resnet18": [
        ("Sequential", [1, 64, 24, 24]),
        ("Sequential", [1, 64, 24, 24]),
        ("Sequential", [1, 128, 12, 12]),
        ("Sequential", [1, 256, 6, 6]),
        ("Sequential", [1, 512, 3, 3]),
        ("Sequential", [1, 10]),
    ],
}
IMAGES = {"lenet": 28, "vgg11": 224, "resnet18": 96}
RECIPES = {"lenet": 0.1, "vgg11": 0.01, "vgg11-slim": 0.01, "resnet18": 0.01}


def summary(assay: Assay, *words: object) -> dict:
    result = assay("summary", *words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.parametrize("name", BOOK)
def test_the_summary_gives_the_books_shapes(assay: Assay, name: str) -> None:
    found = summary(assay, name, "--depth", 1)
    assert found["inputs"] == [[1, 1, IMAGES[name], IMAGES[name]]]
    shapes = [(layer["kind"], *layer["output"]) for layer in found["layers"]]
    assert shapes == BOOK[name]


def test_lenets_counts_are_those_worked_out_by_hand(assay: Assay) -> None:
    found = summary(assay, "lenet")
    counts = [
        (layer["parameters"], layer["multiply_adds"])
        for layer in found["layers"]
        if layer["parameters"]
    ]
    assert counts == [
        (6 * 25 + 6, 28 * 28 * 6 * 25),
        (16 * 6 * 25 + 16, 10 * 10 * 16 * 6 * 25),
        (400 * 120 + 120, 400 * 120),
        (120 * 84 + 84, 120 * 84),
        (84 * 10 + 10, 84 * 10),
    ]
    assert found["totals"]["all"]["parameters"] == 61_706
    assert found["totals"]["convolutional"]["multiply_adds"] == 117_600 + 240_000
    assert found["totals"]["fully connected"]["parameters"] == 48_120 + 10_164 + 850


# What torchvision publishes beside the weights: parameters, and 10^9 multiply-adds.
@pytest.mark.parametrize(
    ("name", "parameters", "giga"), [("alexnet", 61_100_840, 0.714), ("vgg16", 138_357_544, 15.47)]
)
def test_published_counts(assay: Assay, name: str, parameters: int, giga: float) -> None:
    total = summary(assay, f"torchvision:{name}", "--depth", 1)["totals"]["all"]
    assert total["parameters"] == parameters
    assert total["multiply_adds"] / 1e9 == pytest.approx(giga, abs=0.005)


def test_the_table_adds_up_at_every_depth(assay: Assay) -> None:
    for depth in ((), ("--depth", 1), ("--depth", 2)):
        found = summary(assay, "resnet18", *depth)
        for key in ("parameters", "multiply_adds"):
            total = sum(layer[key] for layer in found["layers"])
            assert total == found["totals"]["all"][key] > 0
    printed = assay("summary", "resnet18").out
    assert "4.1.conv2" in printed
    assert "11,178,378" in printed


def test_a_module_that_is_called_twice_is_counted_once() -> None:
    from pipeline.report import layers

    linear = nn.Linear(3, 3)
    model = models.Model(network=nn.Sequential(linear, nn.ReLU(), linear))
    found = layers.summarise("twice", model, [torch.zeros(1, 3)], None)
    assert [(layer.kind, layer.parameters) for layer in found.layers] == [
        ("Linear", 12),
        ("ReLU", 0),
        ("Linear", 0),
    ]
    assert sum(layer.multiply_adds for layer in found.layers) == 18
    assert found.totals["all"]["parameters"] == 12


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_is_the_books(name: str) -> None:
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


def test_the_slim_vgg_has_a_quarter_of_the_widths() -> None:
    def widths(name: str) -> list[int]:
        net = models.get(name).build(None).network
        return [each.out_channels for each in net.modules() if isinstance(each, nn.Conv2d)]

    assert widths("vgg11") == [64, 128, 256, 256, 512, 512, 512, 512]
    assert widths("vgg11-slim") == [each // 4 for each in widths("vgg11")]


def test_a_residual_block_adds_its_input() -> None:
    from pipeline.models.zoo._book import Residual

    block = Residual(3, 3).eval()
    for parameter in (block.bn2.weight, block.bn2.bias):
        nn.init.zeros_(parameter)  # nothing is left of the convolutions
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(block(x), x.relu())
    # Dive into Deep Learning, 8.6: half the size, twice the channels, by way of the 1x1
    assert Residual(3, 6, stride=2)(x).shape == (2, 6, 3, 3)


@pytest.mark.parametrize("name", ["lenet", "resnet18", "torchvision:mobilenet_v3_small"])
def test_a_model_fits_itself_to_the_data(name: str) -> None:
    contents = Contents((3, 40, 48), ("cat", "dog", "fish"))
    model = models.get(name).build(contents)
    images = torch.zeros((2, *contents.shape), dtype=torch.uint8)
    assert model.network.eval()(model.prepare(images)).shape == (2, 3)
    assert model.labels == contents.labels


def test_a_torchvision_model_takes_gray_images_too() -> None:
    contents = Contents((1, 28, 28), ("a", "b"))
    model = models.get("torchvision:mobilenet_v3_small").build(contents)
    prepared = model.prepare(torch.full((1, 1, 28, 28), 255, dtype=torch.uint8))
    # ImageNet's mean and standard deviation, as torchvision gives them
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


def test_preprocessing_enlarges_as_pillow_does() -> None:
    from PIL import Image

    from exporters.module import Preprocess

    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BILINEAR))
    found = Preprocess(size=(96, 96))(torch.from_numpy(image)[None, None])[0, 0] * 255
    assert np.abs(found.numpy() - wanted).max() <= 1  # Pillow rounds to whole numbers, twice


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
def test_an_unknown_name_gets_the_nearest(assay: Assay, name: str, message: str, hint: str) -> None:
    result = assay("summary", name)
    assert result.code == 2
    assert message in result.err
    assert hint in result.err

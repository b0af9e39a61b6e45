"""The report of `assay summary`, against shapes and counts of the book and published counts."""

import json
from collections.abc import Callable

import pytest
import torch
from torch import nn

from pipeline import models
from tests.conftest import Result

Assay = Callable[..., Result]


# From Dive into Deep Learning: the printed output of layer_summary in 7.6, 8.2 and 8.6.
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


def summary(assay: Assay, *words: object) -> dict:
    result = assay("summary", *words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.slow(2)
@pytest.mark.parametrize("name", BOOK)
def test_the_summary_has_the_books_shapes(assay: Assay, name: str) -> None:
    table = summary(assay, name, "--depth", 1)
    assert table["inputs"] == [[1, 1, IMAGES[name], IMAGES[name]]]
    shapes = [(layer["kind"], *layer["output"]) for layer in table["layers"]]
    assert shapes == BOOK[name]


def test_lenets_counts_match_a_calculation_by_hand(assay: Assay) -> None:
    table = summary(assay, "lenet")
    counts = [
        (layer["parameters"], layer["multiply_adds"])
        for layer in table["layers"]
        if layer["parameters"]
    ]
    assert counts == [
        (6 * 25 + 6, 28 * 28 * 6 * 25),
        (16 * 6 * 25 + 16, 10 * 10 * 16 * 6 * 25),
        (400 * 120 + 120, 400 * 120),
        (120 * 84 + 84, 120 * 84),
        (84 * 10 + 10, 84 * 10),
    ]
    assert table["totals"]["all"]["parameters"] == 61_706
    assert table["totals"]["convolutional"]["multiply_adds"] == 117_600 + 240_000
    assert table["totals"]["fully connected"]["parameters"] == 48_120 + 10_164 + 850


# Published by torchvision with the weights: parameters, and 10^9 multiply-adds.
@pytest.mark.slow(3)
@pytest.mark.parametrize(
    ("name", "parameters", "giga"), [("alexnet", 61_100_840, 0.714), ("vgg16", 138_357_544, 15.47)]
)
def test_published_counts(assay: Assay, name: str, parameters: int, giga: float) -> None:
    total = summary(assay, f"torchvision:{name}", "--depth", 1)["totals"]["all"]
    assert total["parameters"] == parameters
    assert total["multiply_adds"] / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.slow(2)
def test_the_table_adds_up_at_every_depth(assay: Assay) -> None:
    for depth in ((), ("--depth", 1), ("--depth", 2)):
        table = summary(assay, "resnet18", *depth)
        for key in ("parameters", "multiply_adds"):
            total = sum(layer[key] for layer in table["layers"])
            assert total == table["totals"]["all"][key] > 0
    printed = assay("summary", "resnet18").out
    assert "4.1.conv2" in printed
    assert "11,178,378" in printed


def test_a_module_that_is_called_twice_is_counted_once() -> None:
    from pipeline.report import layers

    linear = nn.Linear(3, 3)
    model = models.Model(network=nn.Sequential(linear, nn.ReLU(), linear))
    table = layers.summarise("twice", model, [torch.zeros(1, 3)], None)
    assert [(layer.kind, layer.parameters) for layer in table.layers] == [
        ("Linear", 12),
        ("ReLU", 0),
        ("Linear", 0),
    ]
    assert sum(layer.multiply_adds for layer in table.layers) == 18
    assert table.totals["all"]["parameters"] == 12

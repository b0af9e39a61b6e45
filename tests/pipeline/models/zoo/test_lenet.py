"""LeNet, against the book."""

import torch
from torch import nn

from pipeline import models


def test_lenet_has_the_layers_of_the_book() -> None:
    net = models.get("lenet").build(None).network
    shapes, x = [], torch.zeros(1, 1, 28, 28)
    for layer in net.children():
        x = layer(x)
        shapes.append((type(layer).__name__, tuple(x.shape[1:])))
    # From Dive into Deep Learning, 7.6: the printed output of layer_summary.
    assert shapes == [
        ("Conv2d", (6, 28, 28)),
        ("Sigmoid", (6, 28, 28)),
        ("AvgPool2d", (6, 14, 14)),
        ("Conv2d", (16, 10, 10)),
        ("Sigmoid", (16, 10, 10)),
        ("AvgPool2d", (16, 5, 5)),
        ("Flatten", (400,)),
        ("Linear", (120,)),
        ("Sigmoid", (120,)),
        ("Linear", (84,)),
        ("Sigmoid", (84,)),
        ("Linear", (10,)),
    ]
    assert sum(parameter.numel() for parameter in net.parameters()) == 61_706


def test_lenet_is_initialised_xavier_uniform() -> None:
    torch.manual_seed(0)
    for layer in models.get("lenet").build(None).network.children():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(layer.weight)
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < layer.weight.abs().max() <= bound


def test_the_recipe_is_that_of_the_book() -> None:
    recipe = models.get("lenet").recipe
    assert (recipe.epochs, recipe.lr, recipe.batch_size) == (10, 0.1, 128)

"""LeNet-5 in the form of Dive into Deep Learning, section 7.6."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models import Quick, Recipe, classifier

if TYPE_CHECKING:
    from torch import nn


def lenet(classes: int = 10, channels: int = 1) -> nn.Module:
    """Returns LeNet for 28x28 images, initialised Xavier-uniform.

    Two 5x5 convolutions, each with a sigmoid and 2x2 average pooling, then three fully
    connected layers: 61,706 parameters with ten classes and one channel.
    """
    from torch import nn

    from pipeline.models.zoo._book import xavier_uniform

    net = nn.Sequential(
        nn.Conv2d(channels, 6, kernel_size=5, padding=2),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.Sigmoid(),
        nn.AvgPool2d(kernel_size=2, stride=2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.Sigmoid(),
        nn.Linear(120, 84),
        nn.Sigmoid(),
        nn.Linear(84, classes),
    )
    return xavier_uniform(net)


SOURCES = (Path(__file__), Path(__file__).with_name("_book.py"))
MODELS = (
    classifier(
        "lenet",
        lenet,
        size=(28, 28),
        recipe=Recipe(
            epochs=10,
            lr=0.1,
            quick=Quick(epochs=4, limit=20_000, test_limit=2000, lr=0.2, batch_size=32),
        ),
        sources=SOURCES,
    ),
)

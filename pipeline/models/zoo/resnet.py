"""ResNet-18 in the form of Dive into Deep Learning, section 8.6."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models import Quick, Recipe, classifier

if TYPE_CHECKING:
    from torch import nn

# Residual blocks and channels of each stage after the stem.
RESNET18 = ((2, 64), (2, 128), (2, 256), (2, 512))


def resnet18(classes: int = 10, channels: int = 1) -> nn.Module:
    """Returns ResNet-18 for 96x96 images, initialised Xavier-uniform.

    A stem of a 7x7 convolution and max pooling, four stages of two residual blocks, of which
    all but the first halve the image, and global average pooling before the classes.
    """
    from torch import nn

    from pipeline.models.zoo._book import Residual, xavier_uniform

    stem = nn.Sequential(
        nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    stages, width = [], 64
    for number, (count, wanted) in enumerate(RESNET18):
        blocks = [Residual(width, wanted, stride=1 if number == 0 else 2)]
        blocks += [Residual(wanted, wanted) for _ in range(count - 1)]
        stages.append(nn.Sequential(*blocks))
        width = wanted
    head = nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(width, classes))
    return xavier_uniform(nn.Sequential(stem, *stages, head))


SOURCES = (Path(__file__), Path(__file__).with_name("_book.py"))
MODELS = (
    classifier(
        "resnet18",
        resnet18,
        size=(96, 96),
        recipe=Recipe(
            epochs=10,
            lr=0.01,
            quick=Quick(epochs=1, limit=6000, test_limit=1000, lr=0.05, batch_size=32),
        ),
        sources=SOURCES,
    ),
)

"""VGG-11 in the form of Dive into Deep Learning, section 8.2, whole and at a quarter width."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models import Quick, Recipe, classifier

if TYPE_CHECKING:
    from torch import nn

# Convolutions and channels of each block.
VGG11 = ((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))
VGG11_SLIM = tuple((count, width // 4) for count, width in VGG11)
_HEAD = 4096


def vgg(arch: tuple[tuple[int, int], ...], classes: int = 10, channels: int = 1) -> nn.Module:
    """Returns a VGG network for 224x224 images, initialised Xavier-uniform.

    Args:
        arch: For each block, its number of 3x3 convolutions and their output channels; every
            block ends in 2x2 max pooling.
    """
    from torch import nn

    from pipeline.models.zoo._book import xavier_uniform

    blocks: list[nn.Module] = []
    for count, width in arch:
        layers: list[nn.Module] = []
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU()]
            channels = width
        blocks.append(nn.Sequential(*layers, nn.MaxPool2d(kernel_size=2, stride=2)))
    side = 224 >> len(arch)
    net = nn.Sequential(
        *blocks,
        nn.Flatten(),
        nn.Linear(channels * side * side, _HEAD),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(_HEAD, _HEAD),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(_HEAD, classes),
    )
    return xavier_uniform(net)


_RECIPE = Recipe(
    epochs=10,
    lr=0.01,
    quick=Quick(epochs=1, limit=2500, test_limit=500, lr=0.02, batch_size=8),
)

SOURCES = (Path(__file__), Path(__file__).with_name("_book.py"))
MODELS = tuple(
    classifier(name, partial(vgg, arch), size=(224, 224), recipe=_RECIPE, sources=SOURCES)
    for name, arch in (("vgg11", VGG11), ("vgg11-slim", VGG11_SLIM))
)

"""The edge detector of Dive into Deep Learning, section 7.2: two weights, learned in ten steps.

Small enough to run the whole chain in seconds. Not a classifier: its output is a map.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.models import IMAGE, Model, ModelSpec, Recipe, source_facts

if TYPE_CHECKING:
    from pipeline.data.registry import Contents

_SHAPE = (1, 6, 8)
_RECIPE = Recipe(
    epochs=10,
    lr=0.03,
    batch_size=1,
    loss="squared error",
    bench_seconds=0.5,
)


def build(_contents: Contents | None) -> Model:
    """Returns a 1x2 convolution without bias, and the one image that it learns from.

    The image is white but for four black columns; the target is 1 where white turns black,
    -1 where black turns white, and 0 elsewhere.
    """
    import numpy as np
    from torch import nn

    from exporters.module import Preprocess

    image = np.full((1, *_SHAPE), 255, np.uint8)
    image[..., 2:6] = 0
    white = image.astype(np.float32) / 255
    target = white[..., :-1] - white[..., 1:]
    return Model(
        network=nn.Conv2d(1, 1, kernel_size=(1, 2), bias=False),
        prepare=Preprocess(),
        inputs={IMAGE: image},
        image=_SHAPE,
        outputs=("edges",),
        samples=(image, target),
        recipe=_RECIPE,
    )


MODELS = (
    ModelSpec(
        name="edge",
        build=build,
        image_shape=_SHAPE,
        recipe=_RECIPE,
        facts=partial(source_facts, Path(__file__)),
    ),
)

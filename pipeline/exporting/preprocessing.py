"""What is done to an image before the network computes, in words for the graph's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporters.module import Preprocess

if TYPE_CHECKING:
    from pipeline.data.registry import Contents
    from pipeline.models import Model


def before(contents: Contents | None) -> str:
    """Returns what has to be done to images of a data set before the graph takes them."""
    size = None if contents is None else contents.image_size
    if size is None:
        return ""
    return (
        f"the shorter side resized to {size} (Pillow, bilinear), the middle {size}x{size} cut out"
    )


def inside(model: Model) -> str:
    """Returns what the graph does to an image itself."""
    if isinstance(model.prepare, Preprocess):
        return model.prepare.description
    return "none" if model.prepare is None else type(model.prepare).__name__

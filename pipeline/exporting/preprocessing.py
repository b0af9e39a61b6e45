"""What is done to an image before the network computes, in words for the graph's metadata."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporters.module import Preprocess

if TYPE_CHECKING:
    from pipeline.models import Model


def before(size: int | None) -> str:
    """Returns what has to be done to images before the graph takes them; "" if nothing.

    Args:
        size: To which the data set's images were cut; None if they had one size.
    """
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

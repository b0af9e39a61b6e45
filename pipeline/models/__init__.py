"""The model zoo: one file a family, found by the names it declares."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import UsageError, suggestion

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How a model is trained unless told otherwise.

    Attributes:
        epochs: Passes over the training set.
        lr: Learning rate of plain stochastic gradient descent.
        batch_size: Images a step.
    """

    epochs: int
    lr: float
    batch_size: int


@dataclass(frozen=True)
class ModelSpec:
    """A model and all that the stages have to know about it.

    Attributes:
        factory: Returns the initialised module; it takes float images
            `[batch, *image_shape]` in 0 to 1 and gives logits `[batch, classes]`.
        image_shape: Channels, height and width of one image.
        dataset: The data set it is trained on.
        source: The file that defines it; its digest is part of what a checkpoint depends on.
    """

    name: str
    factory: Callable[[], nn.Module]
    image_shape: tuple[int, int, int]
    dataset: str
    recipe: Recipe
    source: Path


@cache
def _zoo() -> dict[str, ModelSpec]:
    found: dict[str, ModelSpec] = {}
    for module in pkgutil.iter_modules(__path__):
        family = importlib.import_module(f"{__name__}.{module.name}")
        found |= {spec.name: spec for spec in family.MODELS}
    return found


def names() -> list[str]:
    """Returns the names of all models in the zoo. Imports no torch."""
    return sorted(_zoo())


def get(name: str) -> ModelSpec:
    """Returns a model by its name.

    Raises:
        UsageError: The zoo has no model of this name.
    """
    if name not in _zoo():
        raise UsageError(f"unknown model {name!r}", suggestion(name, names()))
    return _zoo()[name]

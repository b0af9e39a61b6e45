"""Models by name: the zoo, one file a family; torchvision's and timm's; and the user's own."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.errors import UsageError, suggestion
from pipeline.data.registry import FASHION_MNIST, Contents
from pipeline.workflow.digests import sha256_file

if TYPE_CHECKING:
    from torch import nn

    from engines.contract import Array

LIBRARIES = ("torchvision", "timm")
Loss = Literal["cross-entropy", "squared error"]
# Names that every graph of a classifier gets.
IMAGE, LOGITS = "image", "logits"
# Models that are not of the zoo and have been looked for, by name.
_OTHERS: dict[str, ModelSpec] = {}


@dataclass(frozen=True)
class Quick:
    """The preset for minutes on a CPU: a part of the data, and what trains well on it.

    Attributes:
        limit: Training images, the first ones.
        test_limit: Test images, the first ones.
        lr: Learning rate, where the recipe's would not get anywhere in so few steps.
        batch_size: Images a step, likewise.
    """

    epochs: int = 1
    limit: int = 10_000
    test_limit: int = 1000
    lr: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How a model is trained unless told otherwise.

    Attributes:
        epochs: Passes over the training set.
        lr: Learning rate of plain stochastic gradient descent.
        batch_size: Images a step.
        loss: "cross-entropy" against classes, or the sum of squared errors against a target.
        bench_seconds: Time to spend on a batch size in a benchmark.
    """

    epochs: int = 10
    lr: float = 0.01
    batch_size: int = 128
    loss: Loss = "cross-entropy"
    quick: Quick = Quick()
    bench_seconds: float = 8.0


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network, and what the chain has to know to train, export and prove it.

    A factory of the user's own may return one instead of a plain module. The first axis of
    every input and output is the batch, of any size; all other axes are fixed.

    Attributes:
        network: The initialised module.
        prepare: Turns the raw inputs of the graph into the network's; it is exported with the
            network, so that training and serving cannot differ. None: they are the same.
        inputs: Example inputs by name, in the order of the arguments, `[rows, …]`; their
            dtypes and shapes are those of the graph's inputs. Empty for an `image`.
        image: Channels, height and width of the raw uint8 image, if that is the one input.
        outputs: Names of the outputs; by default those the network itself gives.
        labels: The classes, if the first output is the logits of a classifier.
        dataset: The data set it is trained on and judged by, if any.
        samples: Inputs and targets to train on, `[count, …]`, if it has no data set.
        recipe: How it is trained.
    """

    network: nn.Module
    prepare: nn.Module | None = None
    inputs: Mapping[str, Array] = field(default_factory=dict)
    image: tuple[int, int, int] | None = None
    outputs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    dataset: str | None = None
    samples: tuple[Array, Array] | None = None
    recipe: Recipe = Recipe()


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model by name, before anything heavy is imported.

    Attributes:
        build: Returns the model, newly initialised, for the contents of a data set (None:
            the one it was published for).
        image_shape: Channels, height and width of what the network takes, where it is known.
        dataset: The data set it is trained on unless told otherwise.
        trainable: It can be trained without another data set being named.
        facts: Digests and versions of what defines it; a checkpoint depends on them.
    """

    name: str
    build: Callable[[Contents | None], Model]
    image_shape: tuple[int, int, int] | None = None
    dataset: str | None = None
    trainable: bool = True
    recipe: Recipe = Recipe()
    facts: Callable[[], dict[str, str]]


def for_images(
    network: nn.Module,
    *,
    shape: tuple[int, int, int],
    wanted: tuple[int, int, int],
    labels: tuple[str, ...],
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    dataset: str | None = None,
    recipe: Recipe = Recipe(),
) -> Model:
    """Returns a classifier of uint8 images.

    Args:
        shape: Channels, height and width of the images.
        wanted: What the network takes; images are brought to it inside the graph.
        mean: Of each channel, subtracted, and `std` divided by; see `exporters.module`.
    """
    from exporters.module import Preprocess

    return Model(
        network=network,
        prepare=Preprocess(
            size=wanted[1:] if shape[1:] != wanted[1:] else None,
            channels=wanted[0] if shape[0] != wanted[0] else None,
            mean=mean,
            std=std,
        ),
        image=shape,
        outputs=(LOGITS,),
        labels=labels,
        dataset=dataset,
        recipe=recipe,
    )


def classifier(
    name: str,
    factory: Callable[[int, int], nn.Module],
    *,
    size: tuple[int, int],
    recipe: Recipe,
    sources: tuple[Path, ...],
) -> ModelSpec:
    """Returns an image classifier of the zoo, trained on Fashion-MNIST by default.

    Args:
        factory: Returns the initialised module for a number of classes and of channels; it
            takes float images in 0 to 1 and gives logits `[batch, classes]`.
        size: Height and width that images are resized to, inside the graph.
        sources: The files that define the module.
    """

    def build(contents: Contents | None) -> Model:
        contents = contents or FASHION_MNIST.contents
        channels = contents.shape[0]
        return for_images(
            factory(len(contents.labels), channels),
            shape=contents.shape,
            wanted=(channels, *size),
            labels=contents.labels,
            dataset=FASHION_MNIST.name,
            recipe=recipe,
        )

    return ModelSpec(
        name=name,
        build=build,
        image_shape=(1, *size),
        dataset=FASHION_MNIST.name,
        recipe=recipe,
        facts=partial(source_facts, *sources),
    )


def source_facts(*sources: Path) -> dict[str, str]:
    """Returns the digests of the files that define a model."""
    return {f"source {source.name}": sha256_file(source) for source in sources}


@cache
def _zoo() -> dict[str, ModelSpec]:
    from pipeline.models import zoo

    specs: dict[str, ModelSpec] = {}
    for module in pkgutil.iter_modules(zoo.__path__):
        if not module.name.startswith("_"):
            family = importlib.import_module(f"{zoo.__name__}.{module.name}")
            specs |= {spec.name: spec for spec in family.MODELS}
    return specs


def names() -> list[str]:
    """Returns the names of all models in the zoo. Imports no torch."""
    return sorted(_zoo())


def in_zoo(name: str) -> ModelSpec | None:
    """Returns a model of the zoo; None for any other name. Imports nothing heavy."""
    return _zoo().get(name)


def check_name(name: str) -> None:
    """Raises UsageError unless a name has the form of a model's. Imports nothing."""
    if name in _zoo() or re.fullmatch(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_][\w.-]*", name):
        return
    others = (
        ", torchvision:NAME, timm:NAME, or of your own package.module:factory or"
        " path/to/file.py:factory"
    )
    raise UsageError(f"unknown model {name!r}", suggestion(name, names()) + others)


def relative(name: str) -> str:
    """Returns a model's name; of a file, with its path from here, so that it has one name."""
    place, _, what = name.rpartition(":")
    if not place.endswith(".py"):
        return name
    try:
        return f"{Path(os.path.relpath(place)).as_posix()}:{what}"
    except ValueError:  # on another drive
        return name


def get(name: str, seed: int = 0) -> ModelSpec:
    """Returns a model by its name.

    For a name of the zoo nothing heavy is imported; for one of the user's own, the factory is
    imported and called.

    Args:
        seed: Of the initial weights that are wanted, if any: if `build` is called with torch's
            generator seeded so, it returns what the factory has returned here.

    Raises:
        UsageError: No model has this name.
        NotAvailableError: Its library is not installed.
        DeployError: The user's factory raised, or returned no model.
    """
    check_name(name)
    if name in _zoo():
        return _zoo()[name]
    if name not in _OTHERS:
        place, _, what = name.rpartition(":")
        if place in LIBRARIES:
            _OTHERS[name] = importlib.import_module(f"{__name__}.{place}").find(place, what)
        else:
            _OTHERS[name] = importlib.import_module(f"{__name__}.own").find(place, what, seed)
    return _OTHERS[name]


def forget() -> None:
    """Forgets the models that are not of the zoo: the next `get` looks for them again."""
    _OTHERS.clear()

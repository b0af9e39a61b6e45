"""Models by name: the zoo, torchvision's and timm's, and the user's own."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engines.errors import UsageError, suggestion
from pipeline.data.registry import FASHION_MNIST, Contents
from pipeline.workflow.artifacts import GRAPH_PREFIX
from pipeline.workflow.digests import sha256_file

if TYPE_CHECKING:
    from torch import nn

    from engines.contract import Array

LIBRARIES = ("torchvision", "timm")
Loss = Literal["cross-entropy", "squared error"]
# Names of the input and the output of every classifier's graph.
IMAGE, LOGITS = "image", "logits"
# Models outside the zoo that `get` has returned, by name.
_SPECS: dict[str, ModelSpec] = {}


@dataclass(frozen=True)
class Quick:
    """The preset "quick": a part of the data, for minutes on a CPU.

    Attributes:
        epochs: Passes over that part of the training set.
        limit: Number of training images, the first ones.
        test_limit: Number of test images, the first ones.
        lr: Learning rate; None means the recipe's, which is too small for so few steps of some
            models.
        batch_size: Images per step; None means the recipe's.
    """

    epochs: int = 1
    limit: int = 10_000
    test_limit: int = 1000
    lr: float | None = None
    batch_size: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How a model is trained by default.

    Attributes:
        epochs: Passes over the training set.
        lr: Learning rate of plain stochastic gradient descent.
        batch_size: Images per step.
        loss: "cross-entropy" with classes, or the sum of squared errors against a target.
        quick: The values of the preset "quick".
        bench_seconds: Seconds to spend on each batch size in a benchmark.
    """

    epochs: int = 10
    lr: float = 0.01
    batch_size: int = 128
    loss: Loss = "cross-entropy"
    quick: Quick = Quick()
    bench_seconds: float = 8.0


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network, and everything needed to train, export and verify it.

    A user's factory may return a Model instead of a plain module. The first axis of every input
    and output is the batch, of any size; the other axes are fixed, except for those in `dynamic`.

    Attributes:
        network: The initialised module.
        prepare: Turns the raw inputs of the graph into the network's; it is exported with the
            network, so that training and serving cannot differ. None means that both are equal.
        inputs: Example inputs by name, in the order of the arguments, `[rows, …]`; they give the
            dtypes and shapes of the graph's inputs. Empty if `image` is given.
        image: Channels, height and width of the raw uint8 image, if it is the only input.
        outputs: Names of the outputs; by default those that the network gives.
        labels: The classes, if the first output is the logits of a classifier.
        dataset: The data set it is trained and evaluated on, if any.
        samples: Inputs and targets to train on, `[count, …]`, if it has no data set.
        recipe: How it is trained by default.
        dynamic: Axes of inputs that have several sizes: by input, the number of the axis with a
            name and its least and largest size, as in `{"image": {2: ("height", 64, 512)}}`.
            Axes of one name have equal sizes. The examples have the usual size.
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
    dynamic: Mapping[str, Mapping[int, tuple[str, int, int]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A model's name and properties; `build` makes the model.

    Attributes:
        build: Returns the newly initialised model for a data set's contents; None means the data
            set that the model was published for.
        image_shape: Channels, height and width of the network's input, if known.
        dataset: The data set it is trained on by default.
        trainable: It has a default data set, or samples of its own.
        recipe: How it is trained by default.
        facts: Returns digests and versions of what defines the model; they are part of a
            checkpoint's key.
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
    bgr: bool = False,
    dataset: str | None = None,
    recipe: Recipe = Recipe(),
) -> Model:
    """Returns a classifier of uint8 images.

    Args:
        shape: Channels, height and width of the images.
        wanted: Channels, height and width that the network takes; the graph converts the images.
        labels: The classes, in the order of the logits.
        mean: Mean of each channel, to subtract; see `exporters.module`.
        std: Standard deviation of each channel, to divide by.
        bgr: The network takes channels in the order blue, green, red.
        dataset: See `Model`.
        recipe: See `Model`.
    """
    from exporters.module import Preprocess

    return Model(
        network=network,
        prepare=Preprocess(
            size=wanted[1:] if shape[1:] != wanted[1:] else None,
            channels=wanted[0] if shape[0] != wanted[0] else None,
            mean=mean,
            std=std,
            bgr=bgr,
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


def counted(inputs: Iterable[str]) -> str:
    """Returns what a batch of these inputs consists of: "images" or "rows"."""
    return "images" if [*inputs] == [IMAGE] else "rows"


def in_zoo(name: str) -> ModelSpec | None:
    """Returns a model of the zoo; None for any other name. Imports no torch."""
    return _zoo().get(name)


def graph_file(name: str) -> Path | None:
    """Returns the path of a model that is an ONNX file, "onnx:FILE"; None for any other."""
    path = name.removeprefix(GRAPH_PREFIX)
    return Path(path) if path not in ("", name) else None


def check_name(name: str) -> None:
    """Raises UsageError unless a name is in the zoo or has the form LIBRARY-OR-FILE:NAME."""
    if graph_file(name) is not None:
        return
    if name in _zoo() or re.fullmatch(r"([A-Za-z_][\w.]*|.+\.py):[A-Za-z_][\w.-]*", name):
        return
    raise UsageError(f"unknown model {name!r}", _hint(name))


def _hint(name: str) -> str:
    """Returns what to give instead of a name that is not a model's."""
    path = Path(name)
    if path.suffix == ".py":
        if not os.path.isfile(name):  # noqa: PTH113 - any text is a name
            return f"{name} does not exist; give path/to/file.py:factory"
        functions = re.findall(r"^def ([A-Za-z]\w*)\(\)", path.read_text("utf-8", "replace"), re.M)
        return f"give the function that returns the model: {name}:{(functions or ['factory'])[0]}"
    if path.suffix == ".onnx":
        return (
            f"an ONNX file is named {GRAPH_PREFIX}{name}; `assay verify MODEL --file {name}`"
            " compares it with a PyTorch model"
        )
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".safetensors"):
        return f"give the model's name, and the file of its weights with --weights {name}"
    if os.path.isdir(name):  # noqa: PTH112
        return f"give the model's name, and a folder of images with --data {name}"
    in_libraries = [f"{library}:{name}" for library in LIBRARIES if name in _known_to(library)]
    if in_libraries:
        return f"did you mean {' or '.join(map(repr, in_libraries))}?"
    return suggestion(name, names()) + (
        ", torchvision:NAME, timm:NAME, or of your own package.module:factory,"
        " path/to/file.py:factory or onnx:path/to/model.onnx"
    )


def _known_to(library: str) -> list[str]:
    """Returns the names of a library's models; none if it is not installed."""
    try:
        if library == "timm":
            return list(importlib.import_module("timm").list_models())
        models = importlib.import_module("torchvision").models
        return list(models.list_models(module=models))
    except ImportError:
        return []


def relative(name: str) -> str:
    """Returns a model's name, with a file's path relative to the current folder.

    The name is part of artifacts' paths, so one file must not have several.
    """
    place, _, what = name.rpartition(":")
    graph = graph_file(name)
    if graph is None and not place.endswith(".py"):
        return name
    try:
        if graph is not None:
            return f"{GRAPH_PREFIX}{Path(os.path.relpath(graph)).as_posix()}"
        return f"{Path(os.path.relpath(place)).as_posix()}:{what}"
    except ValueError:  # on another drive
        return name


def get(name: str, seed: int = 0) -> ModelSpec:
    """Returns a model by its name.

    A zoo model is found without importing torch. A user's factory is imported and called.

    Args:
        seed: Seed of torch's generator while a user's factory is called. A later `build` with
            the same seed returns that model instead of calling the factory again.

    Raises:
        UsageError: No model has this name.
        NotAvailableError: The model's library is not installed.
        DeployError: The user's factory raised, or did not return a model.
    """
    check_name(name)
    if name in _zoo():
        return _zoo()[name]
    if name not in _SPECS:
        place, _, what = name.rpartition(":")
        if graph_file(name) is not None:
            _SPECS[name] = importlib.import_module(f"{__name__}.onnx_file").find(name)
        elif place in LIBRARIES:
            _SPECS[name] = importlib.import_module(f"{__name__}.{place}").find(place, what)
        else:
            _SPECS[name] = importlib.import_module(f"{__name__}.own").find(place, what, seed)
    return _SPECS[name]

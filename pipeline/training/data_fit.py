"""Fitting a model to a data set: its images, its classes and its last layer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError, UsageError
from pipeline.data.registry import Contents, read_contents
from pipeline.models import LOGITS, Model, ModelSpec, for_images
from pipeline.workflow.artifacts import CONTENTS, TRAINING
from pipeline.workflow.digests import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

    from engines.contract import Array

_NAMED = 5  # classes in a message
_COLOURS = 3
# What PyTorch says of a convolution whose input has another number of channels.
_OTHER_CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
# What converts images, by their channels and those of the network.
_CONVERSIONS = {
    (3, 1): ", as by image.float().mean(1, keepdim=True) / 255",
    (1, 3): ", as by image.expand(-1, 3, -1, -1).float() / 255",
}


@dataclass(frozen=True)
class Fit:
    """What the user says about how a model takes a data set.

    Attributes:
        mean: The mean of each channel on the scale 0 to 1, to subtract; empty to skip.
        std: The standard deviation of each channel, to divide by.
        bgr: The network takes channels in the order blue, green, red.
        replace_head: Put a new last layer with the data set's classes.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    bgr: bool = False
    replace_head: bool = False

    def document(self) -> dict[str, Any]:
        """Returns the JSON form, as in `training.json`."""
        return {**dataclasses.asdict(self), "mean": [*self.mean], "std": [*self.std]}


def of_training(training: Mapping[str, Any]) -> Fit:
    """Returns how a model was trained to take its data set, by its `training.json`."""
    if "fit" not in training:  # by an earlier version
        return Fit()
    fit = training["fit"]
    return Fit(tuple(fit["mean"]), tuple(fit["std"]), fit["bgr"], fit["replace_head"])


def as_trained(spec: ModelSpec, root: Path) -> Model:
    """Returns a model, newly initialised, as it was last trained; as it is if it was not.

    A module of the user's own takes the images, and has the classes, of its training's data set.
    """
    path = root / TRAINING.at(model=spec.name).path
    training = read_json(path) if path.exists() else {}
    contents = None
    if data := training.get("data"):
        described = root / CONTENTS.at(dataset=data).path
        contents = read_contents(described) if described.exists() else None
    return build(spec, contents, of_training(training) if contents is not None else Fit())


def build(
    spec: ModelSpec,
    contents: Contents | None,
    fit: Fit,
    load: Callable[[nn.Module], None] | None = None,
) -> Model:
    """Returns a newly initialised model that takes a data set's images and gives its classes.

    A module of the user's own without preprocessing and example inputs gets a preprocessing: the
    raw uint8 image, divided by 255, and normalized as `fit` says.

    Args:
        contents: Image shape and classes of the data set; None returns the model as it is.
        load: Loads weights into the network, before its last layer is replaced; None keeps the new
            ones.

    Raises:
        UsageError: `fit` does not suit the model.
        DeployError: The model takes other images or gives other classes than the data set has.
    """
    if contents is None:
        if fit != Fit():
            raise UsageError(
                f"{spec.name} has no data set, so --mean, --std, --bgr and --replace-head do not"
                " apply",
                "name a data set with --data",
            )
        model = spec.build(None)
    else:
        model = spec.build(_for_weights(spec, contents, fit))
    if load is not None:
        load(model.network)
    if contents is None:
        return model
    model = _on_images(spec.name, model, contents, fit)
    if model.recipe.loss != "cross-entropy":
        return model
    width = _width(spec.name, model, contents)
    if fit.replace_head:
        replace_head(spec.name, model, width, len(contents.labels), _blank(contents))
        model = dataclasses.replace(model, labels=contents.labels)
        width = _width(spec.name, model, contents)
    labels = model.labels or contents.labels
    if sorted(labels) != sorted(contents.labels):
        raise _other_classes(spec.name, labels, contents.labels)
    if width != len(labels):
        raise DeployError(
            f"{spec.name} gives {width:,} classes, but the data set has {len(labels):,}"
            f" ({_listed(labels)})",
            "--replace-head puts a new last layer there, to be trained; or change the model",
        )
    return dataclasses.replace(model, labels=labels)


def targets(classes: Array, contents: Contents | None, model: Model) -> Array:
    """Returns a data set's classes as the model numbers them, which may be in another order.

    Args:
        classes: Numbers of the data set's classes, int64 `[count]`.
    """
    import numpy as np

    if contents is None or model.labels in ((), contents.labels):
        return classes
    numbers = [model.labels.index(label) for label in contents.labels]
    renumbered: Array = np.array(numbers, np.int64)[classes]
    return renumbered


def last_layer(name: str, model: Model, width: int, inputs: torch.Tensor) -> nn.Module:
    """Returns the layer that gives the classes: of those with `width` outputs, the last to run.

    Args:
        inputs: Some inputs of the model.

    Raises:
        DeployError: No linear layer or 1x1 convolution gives `width` numbers.
    """
    candidates = [
        module for path, module in model.network.named_modules() if path and _gives(module, width)
    ]
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, _output: ran.append(module))
        for module in candidates
    ]
    try:
        _output(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for module in (ran or candidates)[::-1]:
        return module
    raise DeployError(
        f"{name} has no linear layer or 1x1 convolution that gives its {width:,} classes",
        "change the model so that its last layer does",
    )


def replace_head(name: str, model: Model, width: int, classes: int, inputs: torch.Tensor) -> None:
    """Puts a newly initialised layer with `classes` outputs for the one that has `width`."""
    from torch import nn

    layer = last_layer(name, model, width, inputs)
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(layer.in_features, classes, bias=bias)
    else:
        assert isinstance(layer, nn.Conv2d)  # noqa: S101 - see last_layer
        new = nn.Conv2d(layer.in_channels, classes, 1, layer.stride, bias=bias)  # type: ignore[arg-type]
    # A layer may have several names.
    for path, module in [*model.network.named_modules(remove_duplicate=False)]:
        if module is layer:
            parent, _, child = path.rpartition(".")
            setattr(model.network.get_submodule(parent), child, new)


def _gives(module: nn.Module, width: int) -> bool:
    """Whether a module is a linear layer or a 1x1 convolution with `width` outputs."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return module.out_features == width
    return (
        isinstance(module, nn.Conv2d)
        and module.out_channels == width
        and set(module.kernel_size) == {1}
    )


def _for_weights(spec: ModelSpec, contents: Contents, fit: Fit) -> Contents:
    """Returns the contents to build for: with the published classes if the head is replaced."""
    if not fit.replace_head:
        return contents
    published = spec.build(None).labels
    return dataclasses.replace(contents, labels=published) if published else contents


def _on_images(name: str, model: Model, contents: Contents, fit: Fit) -> Model:
    """Returns a model that takes the data set's images."""
    raw = model.image is None and model.prepare is None
    if (fit.mean or fit.std or fit.bgr) and not raw:
        raise UsageError(
            f"{name} has a preprocessing of its own, so --mean, --std and --bgr do not apply",
            "leave them out",
        )
    if model.image is not None and model.image != contents.shape:
        wanted, has = ("x".join(map(str, shape)) for shape in (model.image, contents.shape))
        raise DeployError(
            f"{name} takes images {wanted}, but those of the data set are {has}",
            f"decode them again with `assay data --image-size {model.image[1]}`"
            if model.image[1] == model.image[2] and model.image[0] == contents.shape[0]
            else "change the model's `image`, or the images",
        )
    if not raw:
        return model
    if len(model.inputs) > 1:
        raise DeployError(
            f"{name} has {len(model.inputs)} inputs ({', '.join(model.inputs)}), but a data set"
            " gives it one image",
            "leave --data out",
        )
    channels = contents.shape[0]
    if len(fit.mean) != len(fit.std) or len(fit.mean) not in (0, channels):
        raise UsageError(
            f"--mean has {len(fit.mean)} values and --std {len(fit.std)}, but the images have"
            f" {channels} channels",
            "give both a value for each channel, or leave both out",
        )
    if fit.bgr and channels != _COLOURS:
        raise UsageError(
            f"--bgr is for images of three channels, but these have {channels}", "leave it out"
        )
    on_images = for_images(
        model.network,
        shape=contents.shape,
        wanted=contents.shape,
        labels=model.labels,
        mean=fit.mean,
        std=fit.std,
        bgr=fit.bgr,
        recipe=model.recipe,
    )
    return dataclasses.replace(on_images, outputs=model.outputs or (LOGITS,))


def _width(name: str, model: Model, contents: Contents) -> int:
    """Returns how many classes the model gives for an image of the data set."""
    from pipeline.golden.reference import explained

    shape = "x".join(map(str, contents.shape))
    hint = "change the model, or decode the images at another size with `assay data --image-size`"
    try:
        with explained(f" of {shape}", hint):
            output = _output(model, _blank(contents))
    except DeployError as error:
        if match := _OTHER_CHANNELS.search(error.message):
            wanted, has = map(int, match.groups())
            error.hint = (
                f"the network takes {_channels(wanted)} and the images have {has}: give its first"
                f" layer {has} input channels, or return an assay.Model whose `prepare` converts"
                f" the images{_CONVERSIONS.get((has, wanted), '')}"
            )
        raise
    if output.ndim != 2 or len(output) != 2:  # noqa: PLR2004
        raise DeployError(
            f"{name} gives {list(output.shape)} for two images; a classifier gives [2, classes]",
            "return the logits as the first output",
        )
    return int(output.shape[1])


def _channels(count: int) -> str:
    return "1 channel" if count == 1 else f"{count} channels"


def _blank(contents: Contents) -> torch.Tensor:
    """Returns two black images."""
    import torch

    return torch.zeros(2, *contents.shape, dtype=torch.uint8)


def _output(model: Model, inputs: torch.Tensor) -> torch.Tensor:
    """Returns the first output of a model, in evaluation mode."""
    import torch

    from exporters.module import Served

    served = Served(model.network, model.prepare)
    modes = {module: module.training for module in served.modules()}
    served.eval()
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        output: torch.Tensor = served(inputs)[0]
    for module, mode in modes.items():
        module.training = mode
    return output


def _other_classes(name: str, labels: tuple[str, ...], classes: tuple[str, ...]) -> DeployError:
    return DeployError(
        f"{name} has the labels {_listed(labels)}, but the classes of the data set are"
        f" {_listed(classes)}",
        "give both the same names in any order, leave `labels` out of the model, or train a new"
        " last layer with --replace-head",
    )


def _listed(labels: tuple[str, ...]) -> str:
    more = f", and {len(labels) - _NAMED:,} more" if len(labels) > _NAMED else ""
    return ", ".join(labels[:_NAMED]) + more

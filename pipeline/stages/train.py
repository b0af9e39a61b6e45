"""Stage train: data to checkpoint, or weights that are there already."""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import hardware
from engines.errors import DeployError, UsageError
from pipeline import models
from pipeline.data import registry
from pipeline.data.registry import Contents
from pipeline.report.training_summary import describe
from pipeline.stages import data_option, model_option, need_torch
from pipeline.workflow import console
from pipeline.workflow.artifacts import (
    CHECKPOINT,
    CONTENTS,
    DATA,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    TRAINING,
    Artifact,
    Paths,
    slug,
)
from pipeline.workflow.digests import read_json, sha256_file, sha256_json, write_json
from pipeline.workflow.stage import Made, Stage, option

if TYPE_CHECKING:
    from engines.contract import Array
    from pipeline.models import Model
    from pipeline.training.checkpoint import Keeper
    from pipeline.training.settings import Samples, Settings

PRESETS = ("full", "quick")
_state = {"called for help": False}


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    data: str | None = data_option(None)
    weights: Path | None = option(
        None,
        text="Start from this safetensors or torch file; without --epochs, keep it.",
        key=False,
    )
    preset: str = option(
        "full",
        text="The recipe, or minutes on a CPU with a part of the data.",
        names=lambda: [*PRESETS],
    )
    epochs: int | None = option(None, text="Passes over the training set [preset's].", low=0)
    lr: float | None = option(None, text="Learning rate [preset's].", high=1000)
    batch_size: int | None = option(None, text="Images a step [preset's].")
    limit: int | None = option(None, text="Train on the first N images only.")
    test_limit: int | None = option(None, text="Judge by the first N test images only.")
    seed: int = option(0, text="Seed of the initial weights and of the order of images.", low=0)
    threads: int = option(factory=hardware.available_cpus, text="CPU threads.", high=1024)
    device: str = option("auto", text="Device to train on: auto, cpu, cuda or cuda:N.")
    compile: bool | None = option(
        None, text="Compile the network with torch.compile [where the recipe gains by it on a GPU]."
    )
    tf32: bool = option(
        True, text="On a GPU, compute convolutions and products in TF32; never when proving."
    )
    amp: str = option(
        "none",
        text="Mixed precision; for GPUs, as it makes most CPUs slower.",
        names=lambda: ["none", "bf16", "fp16"],
    )
    resume: bool = option(
        False, text="Go on where an interrupted training with the same options stopped.", key=False
    )


def resolve(params: Params) -> Params:
    """Fills in the preset, the data set, and the device that "auto" means here."""
    from engines.checks import pick_device

    spec = models.get(params.model)
    if params.data is not None:
        registry.check_name(params.data)
    if params.weights is not None and not params.weights.is_file():
        raise DeployError(f"there is no file {params.weights}", "give the path of the weights")
    data = params.data or spec.dataset
    chosen: dict[str, Any] = {"epochs": spec.recipe.epochs, "lr": spec.recipe.lr}
    chosen["batch_size"] = spec.recipe.batch_size
    if params.preset == "quick":
        quick = dataclasses.asdict(spec.recipe.quick)
        if not data:
            quick |= {"limit": None, "test_limit": None, "epochs": spec.recipe.epochs}
        chosen |= {name: value for name, value in quick.items() if value is not None}
    if params.weights is not None or not (spec.trainable or params.data):
        chosen["epochs"] = 0
    given = {name: getattr(params, name) for name in chosen}
    chosen |= {name: value for name, value in given.items() if value is not None}
    if chosen["epochs"] and not (spec.trainable or data):
        raise UsageError(
            f"{params.model} cannot be trained: it has no data set",
            "name one with --data, or leave --epochs out to take its weights as they are",
        )
    device = pick_device(params.device, ("cuda", "cpu"), "training")
    on_gpu = device != "cpu"
    compile_ = params.compile
    if compile_ is None:
        compile_ = on_gpu and spec.recipe.compile_on_gpu and _can_compile_for_gpu()
    return dataclasses.replace(
        params,
        **chosen,
        data=data,
        device=device,
        compile=compile_,
        tf32=params.tf32 and on_gpu,
    )


def _can_compile_for_gpu() -> bool:
    """Whether torch.compile finds Triton, and the C compiler that Triton needs."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return find_spec("triton") is not None and any(map(shutil.which, filter(None, compilers)))


def inputs_of(data: str | None, artifacts: tuple[Artifact, ...] = DATA) -> tuple[Artifact, ...]:
    """Returns the artifacts of a data set; none if there is no data set."""
    return () if data is None else tuple(artifact.at(dataset=data) for artifact in artifacts)


def contents_of(inputs: Paths, data: str | None) -> Contents | None:
    """Returns image shape and classes of a data set; None if there is no data set."""
    if data is None:
        return None
    found = read_json(inputs[CONTENTS.at(dataset=data)])
    return Contents(tuple(found["shape"]), tuple(found["labels"]))


def called_for_help() -> bool:
    """Whether this process has called others of a distributed training to `fit`."""
    return _state["called for help"]


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Trains the model, or takes its weights as they are, and measures it on the test set."""
    need_torch()
    import torch
    from safetensors.torch import save_file

    from pipeline.training import distributed, weights

    among = distributed.group()
    if among.world > 1:
        _state["called for help"] = True
        distributed.shared((inputs, params))
    model, curve, said = fit(inputs, params)
    save_file(weights.apart(model.network.state_dict()), outputs[CHECKPOINT])
    write_json(
        outputs[TRAINING],
        {
            "model": params.model,
            "preset": params.preset,
            "data": params.data,
            "weights": None if params.weights is None else sha256_file(params.weights),
            "processes": among.world,
            **said,
            **_tested(model, inputs, params),
            "torch": torch.__version__,
            "cpu": hardware.cpu_model(),
            "platform": platform.platform(),
            "curve": curve,
        },
    )
    _state_file(inputs, params).unlink(missing_ok=True)


def fit(inputs: Paths, params: Params) -> tuple[Model, list[dict[str, float]], dict[str, Any]]:
    """Builds and trains the model.

    Returns:
        The model, its training curve, and what the record has to say of both.
    """
    from pipeline.training import loop, weights
    from pipeline.training.settings import seed

    spec = models.get(params.model)
    contents = contents_of(inputs, params.data)
    settings = _settings(params, spec.recipe)
    seed(settings)
    model = spec.build(contents)
    if params.weights is not None:
        weights.load(model.network, params.weights, params.model)
    said: dict[str, Any] = {**dataclasses.asdict(settings)}
    curve: list[dict[str, float]] = []
    if settings.epochs:
        samples, available = _samples(model, inputs, params)
        said |= {"images": len(samples.targets), "images_available": available}
        if contents is not None:
            said["look"] = look(samples, contents)
        keeper = _keeper(inputs, params, said)
        if keeper.path.exists() and not params.resume:
            console.say(
                f"a training was interrupted ({keeper.path}): starting anew; --resume goes on"
            )
        curve = loop.train(
            model.network, model.prepare, samples, settings, keeper, resume=params.resume
        )
    model.network.eval()
    return model, curve, said


def _settings(params: Params, recipe: models.Recipe) -> Settings:
    from pipeline.training.settings import Settings

    given = {**vars(params), "loss": recipe.loss}
    return Settings(**{each.name: given[each.name] for each in dataclasses.fields(Settings)})


def _state_file(inputs: Paths, params: Params) -> Path:
    return inputs.root / ".resume" / f"{slug(params.model)}.safetensors"


def _keeper(inputs: Paths, params: Params, said: dict[str, Any]) -> Keeper:
    from pipeline.training.checkpoint import Keeper

    depends = {
        "model": params.model,
        "said": said,
        "facts": facts(params),
        "torch": hardware.version("torch"),
        "data": [sha256_file(inputs.locate(artifact)) for artifact in inputs.declared],
    }
    return Keeper(_state_file(inputs, params), sha256_json(depends))


def _samples(model: Model, inputs: Paths, params: Params) -> tuple[Samples, int]:
    """Returns what is trained on, and how much of it there is altogether."""
    import torch

    from pipeline.data import idx
    from pipeline.training.settings import Samples

    if params.data is not None:
        images = idx.read_images(inputs[TRAIN_IMAGES.at(dataset=params.data)])
        labels: Array = idx.read_labels(inputs[TRAIN_LABELS.at(dataset=params.data)])
    elif model.samples is not None:
        images, labels = model.samples
    else:
        raise DeployError(f"{params.model} has nothing to train on", "name a data set with --data")
    part = slice(0, params.limit)
    return Samples(torch.from_numpy(images[part]), torch.from_numpy(labels[part])), len(labels)


def look(samples: Samples, contents: Contents) -> dict[str, Any]:
    """Returns class balance and input range of the training images, and prints them."""
    import torch

    counts = torch.bincount(samples.targets, minlength=len(contents.labels)).tolist()
    values = torch.bincount(samples.inputs.flatten()[:: max(1, samples.inputs.numel() >> 24)])
    levels = torch.arange(len(values), dtype=torch.float64)
    mean = float((values * levels).sum() / values.sum())
    deviation = float(((values * (levels - mean) ** 2).sum() / values.sum()).sqrt())
    seen = values.nonzero().flatten()
    found = {
        "classes": dict(zip(contents.labels, counts, strict=True)),
        "shape": list(contents.shape),
        "min": int(seen[0]),
        "max": int(seen[-1]),
        "mean": round(mean, 2),
        "std": round(deviation, 2),
    }
    console.say(
        f"train: {len(samples.targets):,} images {'x'.join(map(str, contents.shape))} in"
        f" {len(counts)} classes of {min(counts):,} to {max(counts):,}, values {found['min']} to"
        f" {found['max']}, mean {mean:.1f}"
    )
    if min(counts) == 0:
        missing = [name for name, count in zip(contents.labels, counts, strict=True) if not count]
        console.say(f"train: no image at all of class {', '.join(missing)}")
    return found


def _tested(model: Model, inputs: Paths, params: Params) -> dict[str, Any]:
    """Returns the accuracy on the test images, for a classifier with a data set."""
    import torch

    from exporters.module import Served
    from pipeline.data import idx
    from pipeline.golden.reference import output_names, run_all

    if params.data is None or not model.labels:
        return {}
    images = idx.read_images(inputs[TEST_IMAGES.at(dataset=params.data)])
    labels = idx.read_labels(inputs[TEST_LABELS.at(dataset=params.data)])
    available, part = len(labels), slice(0, params.test_limit)
    served = Served(model.network, model.prepare).cpu().eval()
    tensor, labels = torch.from_numpy(images[part]), labels[part]
    names = output_names(model, [tensor[:2]])
    # Where it was trained: VGG-11 on 10,000 images takes half a minute on a CPU.
    served.to(params.device)
    chosen = run_all(served, [tensor], names)[names[0]].argmax(axis=1)
    served.cpu()
    correct = int((chosen == labels).sum())
    return {
        "test_images": len(labels),
        "test_images_available": available,
        "test_correct": correct,
        "test_accuracy": correct / len(labels),
    }


def facts(params: Params) -> dict[str, str]:
    """What defines the model, and the digest of the weights it starts from."""
    found = models.get(params.model).facts()
    if params.weights is not None:
        found["weights"] = sha256_file(params.weights)
    return found


def show(made: Made[Params]) -> None:
    """Prints the test accuracy."""
    for outputs, params in made:
        console.result(f"{params.model}: {describe(read_json(outputs[TRAINING]))}")


STAGE = Stage(
    name="train",
    help="Train a model, or take weights as they are; writes its checkpoint and curve.",
    params=Params,
    inputs=lambda params: inputs_of(params.data),
    outputs=lambda _params: (CHECKPOINT, TRAINING),
    run=run,
    revision=2,
    tools=("torch", "safetensors"),
    facts=facts,
    resolve=resolve,
    show=show,
)

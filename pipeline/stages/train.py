"""Stage train: data to checkpoint."""

from __future__ import annotations

import dataclasses
import platform
from dataclasses import dataclass
from typing import Any

from engines import machine
from pipeline import console, models
from pipeline.artifacts import (
    CHECKPOINT,
    DATA,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    TRAINING,
    Artifact,
    Paths,
)
from pipeline.digests import read_json, sha256_file, write_json
from pipeline.stage import Made, Stage, option
from pipeline.stages import model_option, need_torch


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    epochs: int | None = option(None, text="Passes over the training set [recipe's].")
    lr: float | None = option(None, text="Learning rate [recipe's].")
    batch_size: int | None = option(None, text="Images a step [recipe's].")
    limit: int | None = option(None, text="Train on the first N images only.")
    seed: int = option(0, text="Seed of the initial weights and of the order of images.", low=0)
    threads: int = option(factory=machine.available_cpus, text="CPU threads.", high=1024)
    device: str = option("auto", text="Device to train on: auto, cpu, cuda or cuda:N.")


def resolve(params: Params) -> Params:
    """Fills in the model's own recipe and the device that "auto" means here."""
    from engines.base import pick_device

    recipe = models.get(params.model).recipe
    return dataclasses.replace(
        params,
        epochs=recipe.epochs if params.epochs is None else params.epochs,
        lr=recipe.lr if params.lr is None else params.lr,
        batch_size=recipe.batch_size if params.batch_size is None else params.batch_size,
        device=pick_device(params.device, ("cuda", "cpu"), "training"),
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Trains the model and measures it on the test set."""
    need_torch()
    import torch
    from safetensors.torch import save_file

    from exporters.served import Preprocess, Served
    from pipeline import training
    from pipeline.data import read_images, read_labels

    spec = models.get(params.model)

    def split(images: Artifact, labels: Artifact) -> training.Split:
        return training.Split(
            torch.from_numpy(read_images(inputs[images.at(dataset=spec.dataset)])),
            torch.from_numpy(read_labels(inputs[labels.at(dataset=spec.dataset)])).long(),
        )

    train_set, test_set = split(TRAIN_IMAGES, TRAIN_LABELS), split(TEST_IMAGES, TEST_LABELS)
    available = len(train_set.labels)
    if params.limit is not None:
        limited = slice(0, params.limit)
        train_set = training.Split(train_set.images[limited], train_set.labels[limited])
    chosen = {field.name for field in dataclasses.fields(training.Settings)}
    settings = training.Settings(
        **{name: value for name, value in vars(params).items() if name in chosen}
    )
    module, curve = training.train(spec.factory, Preprocess(), train_set, settings)
    predicted = training.predict(Served(module), test_set.images).argmax(1)
    correct = int((predicted == test_set.labels).sum())
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, outputs[CHECKPOINT])
    write_json(
        outputs[TRAINING],
        {
            "model": params.model,
            **dataclasses.asdict(settings),
            "images": len(train_set.labels),
            "images_available": available,
            "test_images": len(test_set.labels),
            "test_correct": correct,
            "test_accuracy": correct / len(test_set.labels),
            "torch": torch.__version__,
            "cpu": machine.cpu_model(),
            "platform": platform.platform(),
            "curve": curve,
        },
    )


def facts(params: Params) -> dict[str, str]:
    """The digest of the file that defines the model."""
    return {"model_source": sha256_file(models.get(params.model).source)}


def show(made: Made[Params]) -> None:
    """Prints the test accuracy."""
    for outputs, params in made:
        console.result(f"{params.model}: {describe(read_json(outputs[TRAINING]))}")


def describe(training: dict[str, Any]) -> str:
    """Returns the accuracy in words, with what it was trained on if that was not all."""
    part = ""
    if training["images"] < training["images_available"]:
        part = f", on {training['images']:,} of {training['images_available']:,} training images"
    accuracy, epochs = training["test_accuracy"], training["epochs"]
    return f"test accuracy {accuracy:.2%} after {epochs} epochs{part}"


STAGE = Stage(
    name="train",
    help="Train a model; writes its checkpoint and curve.",
    params=Params,
    inputs=lambda params: tuple(
        artifact.at(dataset=models.get(params.model).dataset) for artifact in DATA
    ),
    outputs=lambda _params: (CHECKPOINT, TRAINING),
    run=run,
    tools=("torch", "safetensors"),
    facts=facts,
    resolve=resolve,
    show=show,
)

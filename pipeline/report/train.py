"""The printed report of the train stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipeline.workflow import console

_ONE_SIDED_95 = 1.645  # standard deviations


def show(model: str, training: dict[str, Any]) -> None:
    """Prints a model's test accuracy and how it was trained."""
    console.result(f"{model}: {describe(training)}")
    if doubt := chance_doubt(training):
        console.result(f"{model}: {doubt}")


def chance_doubt(training: Mapping[str, Any]) -> str:
    """Returns a sentence if a trained classifier may be no better than chance, or "".

    Chance is the share of the largest class in the test set. The accuracy has to exceed it by
    more than the test set's size explains in 19 of 20 cases.

    Args:
        training: The content of `training.json`.
    """
    if not training["epochs"] or "confusion" not in training:
        return ""
    chance = max(map(sum, training["confusion"])) / training["test_images"]
    deviation = math.sqrt(chance * (1 - chance) / training["test_images"])
    if training["test_accuracy"] > chance + _ONE_SIDED_95 * deviation:
        return ""
    steps = training["epochs"] * math.ceil(training["images"] / training["batch_size"])
    return (
        f"this may be chance: naming one class always gives {chance:.2%} of"
        f" {training['test_images']:,} test images. It was trained for {steps:,} step"
        f"{'s' if steps > 1 else ''}; try more --epochs, a smaller --batch-size, --optimizer"
        " adamw, or another --lr, with --retrain"
    )


def describe(training: dict[str, Any]) -> str:
    """Returns a training's accuracy or last loss, its epochs, and any limits on its data."""
    epochs = training["epochs"]
    if not epochs:
        how = "with the weights given" if training["weights"] else "with new weights, not trained"
    else:
        how = f"after {epochs} epoch{'s' if epochs > 1 else ''}"
        if training["images"] < training["images_available"]:
            how += f" on {training['images']:,} of {training['images_available']:,} training images"
    if training["preset"] != "full":
        how += f" (preset {training['preset']})"
    if "test_accuracy" not in training:
        loss = f"loss {training['curve'][-1]['loss']:.4g} " if training["curve"] else ""
        return loss + how
    accuracy = f"test accuracy {training['test_accuracy']:.2%}"
    if training["test_images"] < training["test_images_available"]:
        available = training["test_images_available"]
        accuracy += f" on {training['test_images']:,} of {available:,} test images,"
    return f"{accuracy} {how}"

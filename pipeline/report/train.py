"""The printed report of the train stage."""

from __future__ import annotations

from typing import Any

from pipeline.workflow import console


def show(model: str, training: dict[str, Any]) -> None:
    """Prints a model's test accuracy and how it was trained."""
    console.result(f"{model}: {describe(training)}")


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

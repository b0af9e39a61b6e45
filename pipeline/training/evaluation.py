"""The accuracy of a trained classifier on its test set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from exporters.module import Served
from pipeline.data import idx
from pipeline.golden.reference import output_names, run_all
from pipeline.models import IMAGE

if TYPE_CHECKING:
    from pipeline.models import Model


def evaluate(
    model: Model, images: Path, labels: Path, limit: int | None, device: str
) -> dict[str, Any]:
    """Returns the accuracy of a classifier, in the form of `training.json`.

    Args:
        images: The IDX file of the test images.
        labels: The IDX file of their classes.
        limit: Use only this many images, the first ones; None means all.
        device: "cpu", "cuda" or "cuda:N".
    """
    every, classes = idx.read_images(images), idx.read_labels(labels)
    available, part = len(classes), slice(0, limit)
    served = Served(model.network, model.prepare).cpu().eval()
    tensor, classes = torch.from_numpy(every[part]), classes[part]
    names = output_names(model, [IMAGE], [tensor])
    served.to(device)
    chosen = run_all(served, [tensor], names)[names[0]].argmax(axis=1)
    served.cpu()
    correct = int((chosen == classes).sum())
    return {
        "test_images": len(classes),
        "test_images_available": available,
        "test_correct": correct,
        "test_accuracy": correct / len(classes),
    }

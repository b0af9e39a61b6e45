"""The accuracy of a trained classifier on its test set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.module import Served
from pipeline.data import idx
from pipeline.golden.reference import output_names, run_all
from pipeline.models import IMAGE
from pipeline.training import data_fit

if TYPE_CHECKING:
    from pipeline.data.registry import Contents
    from pipeline.models import Model


def evaluate(
    model: Model,
    contents: Contents,
    images: Path,
    labels: Path,
    limit: int | None,
    device: str,
) -> dict[str, Any]:
    """Returns the accuracy of a classifier, in the form of `training.json`.

    `confusion` counts the test images by class, and by the class that the model gives them.

    Args:
        contents: Image shape and classes of the data set.
        images: The IDX file of the test images.
        labels: The IDX file of their classes.
        limit: Use only this many images, the first ones; None means all.
        device: "cpu", "cuda" or "cuda:N".
    """
    every = idx.read_images(images)
    classes = data_fit.targets(idx.read_labels(labels), contents, model)
    available, part = len(classes), slice(0, limit)
    served = Served(model.network, model.prepare).cpu().eval()
    tensor, classes = torch.from_numpy(every[part]), classes[part]
    names = output_names(model, [IMAGE], [tensor])
    served.to(device)
    chosen = run_all(served, [tensor], names)[names[0]].argmax(axis=1)
    served.cpu()
    correct = int((chosen == classes).sum())
    count = len(model.labels)
    confusion = np.bincount(classes * count + chosen, minlength=count**2).reshape(count, count)
    return {
        "test_images": len(classes),
        "test_images_available": available,
        "test_correct": correct,
        "test_accuracy": correct / len(classes),
        "classes": [*model.labels],
        "confusion": confusion.tolist(),
    }

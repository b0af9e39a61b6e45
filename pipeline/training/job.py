"""One training, from data to weights, as each of its processes runs it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines import cache, hardware
from engines.errors import DeployError, UsageError
from pipeline import models
from pipeline.training import data_fit
from pipeline.workflow import console
from pipeline.workflow.digests import sha256_json

if TYPE_CHECKING:
    from engines.contract import Array
    from pipeline.data.registry import Contents
    from pipeline.models import Model
    from pipeline.training.checkpoint import TrainingCheckpoint
    from pipeline.training.data_fit import Fit
    from pipeline.training.settings import Samples, Settings


@dataclass(frozen=True)
class Job:
    """Everything a process needs to train a model; rank 0 sends it to the others by pickle.

    Attributes:
        model: The model's name.
        contents: Image shape and classes of the data set; None without one.
        images: The IDX file of the training images; None if the model has samples of its own.
        labels: The IDX file of their classes.
        limit: Use only this many images, the first ones; None means all.
        weights: The file of the weights to start from.
        key: See `pipeline.training.weights.load`.
        fit: How the model takes the data set.
        state: The file that progress is saved in.
        depends: JSON value of what the weights depend on, besides the settings.
        resume: Continue from the progress in `state`.
    """

    model: str
    contents: Contents | None
    images: Path | None
    labels: Path | None
    limit: int | None
    weights: Path | None
    key: str | None
    fit: Fit
    settings: Settings
    state: Path
    depends: dict[str, Any]
    resume: bool


def fit(job: Job) -> tuple[Model, list[dict[str, float]], dict[str, Any]]:
    """Builds and trains the model.

    Returns:
        The model, its training curve, and the rest of the training record.

    Raises:
        DeployError: The model has no training data, or see `pipeline.training.loop.train`.
    """
    from pipeline.training import loop, weights
    from pipeline.training.settings import seed

    if job.settings.compile:
        cache.set_torch_cache()
    seed(job.settings)
    spec = models.get(job.model, job.settings.seed)
    load = None
    if (start := job.weights) is not None:
        load = lambda network: weights.load(network, start, job.model, job.key)  # noqa: E731
    model = data_fit.build(spec, job.contents, job.fit, load)
    details: dict[str, Any] = {**dataclasses.asdict(job.settings), "fit": job.fit.document()}
    curve: list[dict[str, float]] = []
    if job.settings.epochs:
        samples, available = _samples(model, job)
        details |= {"images": len(samples.targets), "images_available": available}
        if job.contents is not None:
            contents = dataclasses.replace(job.contents, labels=model.labels)
            details["look"] = describe_dataset(samples, contents)
        if job.settings.freeze:
            _freeze(job.model, model, samples)
        checkpoint = _progress_file(job, details)
        if checkpoint.path.exists() and not job.resume:
            console.say(
                f"a training was interrupted ({checkpoint.path}): starting again; --resume"
                " continues it"
            )
        curve = loop.train(
            model.network, model.prepare, samples, job.settings, checkpoint, resume=job.resume
        )
    model.network.eval()
    return model, curve, details


def _progress_file(job: Job, details: dict[str, Any]) -> TrainingCheckpoint:
    from pipeline.training.checkpoint import TrainingCheckpoint

    key = {
        **job.depends,
        "model": job.model,
        "said": details,
        "torch": hardware.version("torch"),
    }
    return TrainingCheckpoint(job.state, sha256_json(key))


def _samples(model: Model, job: Job) -> tuple[Samples, int]:
    """Returns the training samples, and how many there would be without a limit."""
    import torch

    from pipeline.data import idx
    from pipeline.training.settings import Samples

    if job.images is not None and job.labels is not None:
        images = idx.read_images(job.images)
        labels: Array = data_fit.targets(idx.read_labels(job.labels), job.contents, model)
    elif model.samples is not None:
        images, labels = model.samples
    else:
        raise DeployError(f"{job.model} has nothing to train on", "name a data set with --data")
    part = slice(0, job.limit)
    return Samples(torch.from_numpy(images[part]), torch.from_numpy(labels[part])), len(labels)


def _freeze(name: str, model: Model, samples: Samples) -> None:
    """Leaves only the last layer of a classifier to be trained.

    Raises:
        UsageError: The model is not a classifier.
    """
    from pipeline.training import optimization

    if not model.labels:
        raise UsageError(f"--freeze is for classifiers, and {name} has no classes", "leave it out")
    layer = data_fit.last_layer(name, model, len(model.labels), samples.inputs[:2])
    optimization.freeze(model.network, layer)


def describe_dataset(samples: Samples, contents: Contents) -> dict[str, Any]:
    """Returns class counts and pixel statistics of the training images, and prints them."""
    import torch

    counts = torch.bincount(samples.targets, minlength=len(contents.labels)).tolist()
    values = torch.bincount(samples.inputs.flatten()[:: max(1, samples.inputs.numel() >> 24)])
    levels = torch.arange(len(values), dtype=torch.float64)
    mean = float((values * levels).sum() / values.sum())
    deviation = float(((values * (levels - mean) ** 2).sum() / values.sum()).sqrt())
    seen = values.nonzero().flatten()
    description = {
        "classes": dict(zip(contents.labels, counts, strict=True)),
        "shape": list(contents.shape),
        "min": int(seen[0]),
        "max": int(seen[-1]),
        "mean": round(mean, 2),
        "std": round(deviation, 2),
    }
    console.say(
        f"train: {len(samples.targets):,} images {'x'.join(map(str, contents.shape))} in"
        f" {len(counts)} classes of {min(counts):,} to {max(counts):,}, values"
        f" {description['min']} to {description['max']}, mean {mean:.1f}"
    )
    if min(counts) == 0:
        missing = [name for name, count in zip(contents.labels, counts, strict=True) if not count]
        console.say(f"train: there are no images of class {', '.join(missing)}")
    return description

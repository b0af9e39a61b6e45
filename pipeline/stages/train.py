"""Stage train: a checkpoint, trained on a data set or taken from a file of weights."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import engines
from engines import hardware
from engines.errors import UsageError
from exporters import REDUCED
from pipeline import models
from pipeline.data import registry
from pipeline.report import train as report
from pipeline.stages import data_artifacts, data_option, model_option, need_torch
from pipeline.training.optimization import AUGMENTATIONS, OPTIMIZERS, SCHEDULES
from pipeline.workflow import hints, runs
from pipeline.workflow.artifacts import (
    CHECKPOINT,
    CONTENTS,
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    TRAINING,
    Artifact,
    Paths,
    training_state,
)
from pipeline.workflow.digests import read_json, require_file, sha256_file, write_json
from pipeline.workflow.stage import Difference, Stage, StageRuns, option, options

if TYPE_CHECKING:
    from pipeline.training.job import Job
    from pipeline.workflow.records import Record

PRESETS = ("full", "quick")
_LEAST_STD = 1 / 65504  # the reciprocal is the largest number of fp16


@dataclass(frozen=True)
class Params:
    """Options of the stage."""

    model: str = model_option()
    data: str | None = data_option(None)
    weights: Path | None = option(
        None,
        text="Start from this safetensors or torch file; without --epochs, use it unchanged.",
        key=False,
    )
    weights_key: str | None = option(
        None,
        text="Take the tensors of --weights whose names begin with this, such as model_ema.",
    )
    preset: str = option(
        "full",
        text="full is the model's recipe; quick takes minutes on a CPU, with a part of the data.",
        names=lambda: [*PRESETS],
    )
    epochs: int | None = option(None, text="Passes over the training set [preset's].", low=0)
    lr: float | None = option(None, text="Learning rate [preset's].", high=1000)
    batch_size: int | None = option(None, text="Images per step [preset's].")
    limit: int | None = option(None, text="Train on the first N images only.")
    test_limit: int | None = option(None, text="Evaluate on the first N test images only.")
    seed: int = option(0, text="Seed of the initial weights and of the order of images.", low=0)
    threads: int = option(factory=hardware.available_cpus, text="CPU threads.", high=1024)
    device: str = option("auto", text="Device to run on: auto, cpu, cuda or cuda:N.")
    compile: bool = option(False, text="Compile the network with torch.compile.")
    tf32: bool = option(True, text="On a GPU, train in TF32. Verification never uses it.")
    amp: str = option(
        "none",
        text="Type of mixed precision, for GPUs; most CPUs are slower with it.",
        names=lambda: ["none", *REDUCED],
    )
    optimizer: str = option("sgd", text="What takes the steps.", names=lambda: [*OPTIMIZERS])
    momentum: float | None = option(None, text="Momentum of sgd [0].", low=0, high=1)
    weight_decay: float | None = option(None, text="Weight decay [0].", low=0, high=10)
    schedule: str = option(
        "constant", text="Course of the learning rate.", names=lambda: [*SCHEDULES]
    )
    augment: str = option(
        "none",
        text="Random changes of training images: flips and crops, or one of many kinds.",
        names=lambda: [*AUGMENTATIONS],
    )
    freeze: bool = option(False, text="Train the last layer only.")
    replace_head: bool = option(
        False, text="Put a new last layer with the data set's classes, after loading --weights."
    )
    mean: tuple[float, ...] = option(
        (),
        text="For a module of your own: mean of each channel, on the scale 0 to 1, to subtract.",
        low=0,
        high=1,
    )
    std: tuple[float, ...] = option(
        (), text="For a module of your own: deviation of each channel, to divide by.", high=1
    )
    bgr: bool = option(False, text="For a module of your own: it takes blue, green, red.")
    resume: bool = option(
        False, text="Continue an interrupted training that had the same options.", key=False
    )
    retrain: bool = option(
        False,
        text="Train again with other options or data. The weights so far are kept; see assay runs.",
        key=False,
    )


# What a preset stands for, unless it is given.
_BY_PRESET = frozenset({"epochs", "lr", "batch_size", "limit", "test_limit"})
# What a machine decides, unless it is given.
_BY_MACHINE = frozenset({"threads", "device", "tf32"})


def inherit(params: Params, explicit: frozenset[str], record: Record) -> Params:
    """Completes options that are not given by those of the last training.

    The weights that a training starts from are not inherited, since their file may be gone; nor is
    what depends on this machine.
    """
    keys = {entry.name for entry in options(Params) if entry.key}
    kept = keys - explicit - _BY_MACHINE - {"model"}
    if "preset" in explicit and params.preset != record.params.get("preset"):
        kept -= _BY_PRESET
    if "optimizer" in explicit:
        kept -= {"momentum"}
    if "weights" in explicit:  # without --epochs, they are used as they are
        kept -= {"epochs", "weights_key"}
    inherited = {name: record.params[name] for name in kept if name in record.params}
    # JSON has no tuples.
    inherited |= {name: tuple(v) for name, v in inherited.items() if isinstance(v, list)}
    return dataclasses.replace(params, **inherited)


def protect(
    params: Params,
    explicit: frozenset[str],
    record: Record | None,
    differences: Sequence[Difference],
) -> bool:
    """Whether to keep a checkpoint that would be replaced; see `Stage.protect`.

    Raises:
        UsageError: The options or the data are others than those of the checkpoint, or it has been
            changed; only the user knows whether to train again.
    """
    trained = record is None or record.params.get("epochs") or "weights" in record.facts
    if params.retrain or not trained:
        return False
    changed = [
        entry
        for entry in differences
        if entry.part not in ("tools", "revision", "force")
        and not (entry.part == "params" and entry.name in _BY_MACHINE - explicit)
        and not (entry.name == "weights" and "weights" not in explicit)
    ]
    if not changed:
        return True
    what = "; ".join(entry.text for entry in changed)
    words = {name: getattr(params, name) for name in explicit} | {"model": params.model}
    again = hints.command("train", {**words, "retrain": True}, explicit)
    raise UsageError(
        f"{params.model} has trained weights already, which this would replace: {what}",
        f"`{again}` trains again and keeps them (`assay runs` lists them); leave the options out to"
        " use them as they are",
    )


# Options that nothing but a training uses.
_FOR_TRAINING = (
    "lr",
    "optimizer",
    "momentum",
    "weight_decay",
    "schedule",
    "augment",
    "freeze",
)


def check_options(explicit: frozenset[str], runs: Sequence[Params]) -> None:
    """Checks that the options are used.

    Raises:
        UsageError: The key is that of no weights, or the weights are not to be trained.
    """
    if "weights_key" in explicit and "weights" not in explicit:
        raise UsageError("--weights-key is for --weights, which is not given", "leave it out")
    unused = [name for name in _FOR_TRAINING if name in explicit]
    # Weights from a file are trained only if the epochs are given.
    untrained = [
        run for run in runs if run.epochs == 0 or (run.epochs is None and "weights" in explicit)
    ]
    if unused and runs and len(untrained) == len(runs):
        flag = f"--{unused[0].replace('_', '-')}"
        raise UsageError(f"{flag} is for training, but no epochs are given", "give --epochs")


def resolve(params: Params) -> Params:
    """Fills in the preset's values, the data set, and the device that "auto" stands for."""
    from engines.checks import pick_device
    from pipeline.training import distributed

    distributed.check_group()
    spec = models.get(params.model, params.seed)
    if models.graph_file(params.model) is not None:
        raise UsageError(
            f"{params.model} is an ONNX graph, and only PyTorch models are trained",
            "begin with `assay export`, or give the PyTorch model",
        )
    if params.data is not None:
        registry.check_name(params.data)
    if params.weights is not None:
        require_file(params.weights, "give the path of the weights")
    if params.momentum is not None and params.optimizer != OPTIMIZERS[0]:
        raise UsageError(
            f"--momentum is for {OPTIMIZERS[0]}, not for {params.optimizer}", "leave it out"
        )
    if any(value < _LEAST_STD for value in params.std):
        raise UsageError(
            f"--std {','.join(map(str, params.std))}: divided by a number below {_LEAST_STD:.3g},"
            " pixels exceed the range of fp16",
            "give the deviation of each channel on the scale 0 to 1, such as 0.229",
        )
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
    asked = {name: getattr(params, name) for name in chosen}
    chosen |= {name: value for name, value in asked.items() if value is not None}
    if params.replace_head and not chosen["epochs"]:
        raise UsageError(
            "--replace-head puts a new last layer there, which has to be trained",
            "give --epochs, at least 1",
        )
    if chosen["epochs"] and not (spec.trainable or data):
        raise UsageError(
            f"{params.model} cannot be trained: it has no data set",
            "name one with --data, or leave --epochs out to keep its weights unchanged",
        )
    device = pick_device(
        params.device, ("cuda", "cpu"), "training", engines.get("pytorch").gpu_problem
    )
    return dataclasses.replace(
        params,
        **chosen,
        data=data,
        device=device,
        tf32=params.tf32 and device != "cpu",
    )


def run(inputs: Paths, outputs: Paths, params: Params) -> None:
    """Trains the model, unless `epochs` is 0, and evaluates it on the test set."""
    need_torch()
    import torch

    from pipeline.training import distributed, weights
    from pipeline.training.evaluation import evaluate
    from pipeline.training.job import fit

    job = _job(inputs, params)
    processes = distributed.group().world
    if processes > 1:
        distributed.call_helpers(job)
    model, curve, details = fit(job)
    accuracy = {}
    if job.contents is not None and model.labels:
        images, labels = (_at(inputs, part, params) for part in (TEST_IMAGES, TEST_LABELS))
        accuracy = evaluate(model, job.contents, images, labels, params.test_limit, params.device)
    weights.save(model.network.state_dict(), outputs[CHECKPOINT], None)
    write_json(
        outputs[TRAINING],
        {
            "model": params.model,
            "preset": params.preset,
            "data": params.data,
            "weights": None if params.weights is None else sha256_file(params.weights),
            "processes": processes,
            **details,
            **accuracy,
            "torch": torch.__version__,
            "cpu": hardware.cpu_model(),
            "platform": platform.platform(),
            "curve": curve,
        },
    )


def run_again(_outputs: Paths, params: Params) -> str:
    """Returns why to train again though nothing has changed."""
    return "--retrain is given" if params.retrain else ""


def published(outputs: Paths, params: Params) -> None:
    """Removes the progress file, which is not needed once the checkpoint is in place."""
    training_state(outputs.root, params.model).unlink(missing_ok=True)


def replacing(outputs: Paths) -> None:
    """Keeps the weights that are about to be replaced."""
    runs.keep(outputs.root, str(outputs.fields["model"]))


def _job(inputs: Paths, params: Params) -> Job:
    from pipeline.training.data_fit import Fit
    from pipeline.training.job import Job
    from pipeline.training.settings import Settings

    with_data = params.data is not None
    chosen = {name: value for name, value in vars(params).items() if value is not None}
    values = {**chosen, "loss": models.get(params.model).recipe.loss}
    names = [field.name for field in dataclasses.fields(Settings)]
    return Job(
        model=params.model,
        contents=registry.read_contents(_at(inputs, CONTENTS, params)) if with_data else None,
        images=_at(inputs, TRAIN_IMAGES, params) if with_data else None,
        labels=_at(inputs, TRAIN_LABELS, params) if with_data else None,
        limit=params.limit,
        weights=params.weights,
        key=params.weights_key,
        fit=Fit(params.mean, params.std, params.bgr, params.replace_head),
        settings=Settings(**{name: values[name] for name in names if name in values}),
        state=training_state(inputs.root, params.model),
        depends={
            "facts": facts(params),
            "data": [sha256_file(inputs.locate(artifact)) for artifact in inputs.declared],
        },
        resume=params.resume,
    )


def _at(inputs: Paths, artifact: Artifact, params: Params) -> Path:
    return inputs[artifact.at(dataset=str(params.data))]


def facts(params: Params) -> dict[str, str]:
    """Returns the model's facts, and the digest of the weights it starts from."""
    facts_by_name = models.get(params.model).facts()
    if params.weights is not None:
        facts_by_name["weights"] = sha256_file(params.weights)
    return facts_by_name


def show(runs: StageRuns[Params]) -> None:
    """Prints the test accuracy."""
    for outputs, params in runs:
        report.show(params.model, read_json(outputs[TRAINING]))


STAGE = Stage(
    name="train",
    help="Train a model, or take its weights from a file.",
    params=Params,
    inputs=lambda params: data_artifacts(params.data),
    outputs=lambda _params: (CHECKPOINT, TRAINING),
    run=run,
    revision=2,
    tools=("torch", "safetensors"),
    facts=facts,
    inherit=inherit,
    protect=protect,
    replacing=replacing,
    published=published,
    resolve=resolve,
    check_options=check_options,
    run_again=run_again,
    show=show,
)

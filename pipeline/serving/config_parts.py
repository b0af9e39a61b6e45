"""Checks of warm-up requests, ensembles and accelerators in Triton's configurations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engines.checks import import_vendor
from pipeline.bundling.repositories import WARM_UP
from pipeline.serving import config as configs
from pipeline.serving import config_text
from pipeline.serving.client import INSTALL


def warm_up(config: Any, folder: Path) -> Iterator[str]:
    """Yields what is wrong with a model's warm-up, in words.

    Args:
        config: Its `ModelConfig`.
        folder: The model's folder.
    """
    wanted = {entry.name: entry for entry in config.input}
    for sample in config.model_warmup:
        what = f"model_warmup {sample.name!r}" if sample.name else "model_warmup"
        if sample.batch_size > max(config.max_batch_size, 1):
            yield (
                f"{what} has batch_size {sample.batch_size}, and max_batch_size is"
                f" {config.max_batch_size}"
            )
        elif not sample.batch_size:
            yield f"{what} has batch_size 0, so that Triton leaves it out: write 1 or more"
        for name, entry in wanted.items():
            if name not in sample.inputs and not entry.optional:
                yield f"{what} does not give input {name!r}"
        for name, given in sample.inputs.items():
            if wanted and name not in wanted:
                yield f"{what} gives {name!r}, which is not an input"
            elif name in wanted:
                yield from _against(f"{what} gives {name!r}", given, wanted[name])
            yield from _data(what, name, given, folder)


def _against(what: str, given: Any, wanted: Any) -> Iterator[str]:
    """Yields how an input of a warm-up request differs from that of the model."""
    types = configs.messages().DataType
    if given.data_type != wanted.data_type:
        yield f"{what} as {types.Name(given.data_type)}; it is {types.Name(wanted.data_type)}"
    dims, expected = list(given.dims), list(wanted.dims)
    if min(dims, default=1) < 0:
        yield f"{what} with dims {dims}: write the size of every axis"
    elif not config_text.fits(dims, expected):
        yield f"{what} with dims {dims}; they are {expected}"


def _data(what: str, name: str, given: Any, folder: Path) -> Iterator[str]:
    """Yields what is wrong with where a warm-up request gets the values of an input."""
    file = given.input_data_file
    if given.WhichOneof("input_data_type") is None:
        yield f"{what} has no data for {name!r}: write zero_data, random_data or input_data_file"
    if not file:
        return
    path = folder / WARM_UP / file
    if not config_text.within(file):
        yield f"{what} reads {file!r}, outside of the model's folder"
    elif not path.is_file():
        yield f"{what} reads {WARM_UP}/{file} for {name}: it is missing"
    else:
        wanted, size = _bytes(given), path.stat().st_size
        if wanted is not None and size != wanted:
            yield (
                f"{WARM_UP}/{file} has {size:,} bytes; dims {list(given.dims)} of {name}"
                f" take {wanted:,}"
            )


def _bytes(given: Any) -> int | None:
    """Returns the size of an input of one row; None if its type has no fixed size."""
    kind = configs.messages().DataType.Name(given.data_type).removeprefix("TYPE_")
    if kind == "BF16":
        width = 2
    else:
        dtype = import_vendor("tritonclient.utils", INSTALL).triton_to_np_dtype(kind)
        if dtype is None or dtype is np.object_:
            return None
        width = np.dtype(dtype).itemsize
    return width * math.prod(given.dims) if min(given.dims, default=1) >= 0 else None


def ensemble(config: Any, models: set[str]) -> Iterator[str]:
    """Yields what is wrong with an ensemble, in words; nothing for another model.

    Args:
        config: Its `ModelConfig`.
        models: The models of the repository; empty if they are not known.
    """
    scheduled = config.HasField("ensemble_scheduling")
    if config.platform != "ensemble":
        if scheduled:
            yield 'it has ensemble_scheduling, but its platform is not "ensemble"'
        return
    steps = config.ensemble_scheduling.step
    if not steps:
        yield "it is an ensemble without a step: name its models in ensemble_scheduling"
        return
    if config.instance_group:
        yield "it is an ensemble with an instance_group, which belongs to the models of its steps"
    tensors = {entry.name for entry in config.input}
    tensors |= {name for step in steps for name in step.output_map.values()}
    for number, step in enumerate(steps, 1):
        for problem in _step(step, models, tensors):
            yield f"step {number} {problem}"
    for entry in config.output:
        if entry.name not in tensors:
            yield f"output {entry.name!r} is written by none of the steps"


def _step(step: Any, models: set[str], tensors: set[str]) -> Iterator[str]:
    if not step.model_name:
        yield "has no model_name"
    elif models and step.model_name not in models:
        yield f"runs {step.model_name!r}, which is not in this repository"
    for side, names in (("input_map", step.input_map), ("output_map", step.output_map)):
        if not names:
            yield f"has no {side}"
    for key, name in sorted(step.input_map.items()):
        if name not in tensors:
            yield f"reads {name!r} as {key!r}, which no step writes"


def accelerators(config: Any) -> Iterator[str]:
    """Yields accelerators of GPUs that no instance uses, since all run on the CPU."""
    groups = {group.kind for group in config.instance_group}
    if groups == {configs.messages().ModelInstanceGroup.KIND_CPU}:
        for entry in config.optimization.execution_accelerators.gpu_execution_accelerator:
            yield f"gpu_execution_accelerator {entry.name!r} has no effect on KIND_CPU instances"

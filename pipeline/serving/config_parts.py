"""Checks of warm-up requests and accelerators in Triton's configurations."""

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
from pipeline.serving.config_tensors import Signature


def warm_up(config: Any, folder: Path, wanted: Signature | None) -> Iterator[str]:
    """Yields what is wrong with a model's warm-up, in words.

    Args:
        config: Its `ModelConfig`.
        folder: The model's folder.
        wanted: What the model takes; None if that is not known, so that the configuration counts.
    """
    inputs = {entry.name: entry for entry in config.input}
    controls = {entry.name for entry in config.sequence_batching.control_input}
    controls |= {entry.input_name for entry in config.sequence_batching.state}
    for sample in config.model_warmup:
        what = f"model_warmup {sample.name!r}" if sample.name else "model_warmup"
        if sample.batch_size > max(config.max_batch_size, 1):
            yield (
                f"{what} has batch_size {sample.batch_size}, and max_batch_size is"
                f" {config.max_batch_size}"
            )
        elif not sample.batch_size:
            yield f"{what} has batch_size 0, so that Triton leaves it out: write 1 or more"
        for name, entry in inputs.items():
            if name not in sample.inputs and not entry.optional:
                yield f"{what} does not give input {name!r}"
        for name, given in sample.inputs.items():
            if name in inputs:
                yield from _against(f"{what} gives {name!r}", given, inputs[name], config, wanted)
            elif inputs and name not in controls:
                yield f"{what} gives {name!r}, which is not an input"
            yield from _data(what, name, given, folder)


def _against(
    what: str, given: Any, entry: Any, config: Any, wanted: Signature | None
) -> Iterator[str]:
    """Yields how an input of a warm-up request differs from that of the model."""
    kind, dims = configs.type_of(entry), list(entry.dims)
    spec = wanted.known.get(entry.name) if wanted is not None else None
    if wanted is not None and spec is not None and not entry.HasField("reshape"):
        kind = configs.type_name(spec.dtype) if spec.dtype else kind
        ragged = entry.allow_ragged_batch or entry.name in wanted.shapeless
        if not ragged and wanted.batched >= (config.max_batch_size > 0):
            dims = wanted.axes(spec, without_batch=config.max_batch_size > 0) or dims
    if configs.type_of(given) != kind:
        yield f"{what} as {configs.type_of(given)}; it is {kind}"
    sizes = list(given.dims)
    if min(sizes, default=1) < 0:
        yield f"{what} with dims {sizes}: write the size of every axis"
    elif not config_text.fits(sizes, dims):
        yield f"{what} with dims {sizes}; they are {dims}"


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
        needed, size = _bytes(given), path.stat().st_size
        if needed is not None and size < needed:
            yield (
                f"{WARM_UP}/{file} has {size:,} bytes; dims {list(given.dims)} of {name} take"
                f" {needed:,}"
            )


def _bytes(given: Any) -> int | None:
    """Returns the size of an input of one row; None if its type has no fixed size."""
    kind = configs.type_of(given).removeprefix("TYPE_")
    if min(given.dims, default=1) < 0:
        return None
    if kind == "BF16":
        width = 2
    else:
        dtype = import_vendor("tritonclient.utils", INSTALL).triton_to_np_dtype(kind)
        if dtype is None or dtype is np.object_:
            return None
        width = np.dtype(dtype).itemsize
    return width * int(math.prod(given.dims))


def accelerators(config: Any) -> Iterator[str]:
    """Yields accelerators of GPUs that no instance uses, since all run on the CPU."""
    groups = {group.kind for group in config.instance_group}
    if groups == {configs.messages().ModelInstanceGroup.KIND_CPU}:
        for entry in config.optimization.execution_accelerators.gpu_execution_accelerator:
            yield f"gpu_execution_accelerator {entry.name!r} has no effect on KIND_CPU instances"

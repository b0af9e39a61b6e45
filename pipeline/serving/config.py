"""Triton's configuration of a model, as its own protobuf message `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engines.checks import import_vendor
from engines.contract import TensorSpec
from engines.errors import DeployError
from pipeline.bundling.repositories import LABELS
from pipeline.golden.file import Reference
from pipeline.serving.client import INSTALL
from pipeline.serving.forms import Form

# The parameters that tie a model to what was proved.
FILE_DIGEST, GOLDEN_DIGEST = "assay.sha256", "assay.golden_sha256"
ENGINE, LARGEST_BATCH = "assay.engine", "assay.largest_batch"


@dataclass(frozen=True)
class Batching:
    """How Triton joins requests to batches.

    Attributes:
        largest: Rows of the largest batch.
        preferred: The batches to wait for.
        delay: Microseconds that a request waits for others.
    """

    largest: int
    preferred: tuple[int, ...] = ()
    delay: int = 100


def messages() -> Any:
    """Returns the module with Triton's protobuf messages."""
    return import_vendor("tritonclient.grpc.model_config_pb2", INSTALL)


def type_name(dtype: str) -> str:
    """Returns the configuration's name of a numpy dtype, such as "TYPE_FP32".

    Raises:
        DeployError: Triton has no such type.
    """
    utils = import_vendor("tritonclient.utils", INSTALL)
    kind = utils.np_to_triton_dtype(np.dtype(dtype)) if dtype != "bfloat16" else "BF16"
    if kind is None:
        raise DeployError(f"Triton has no type for {dtype}", "export the model with other types")
    return "TYPE_STRING" if kind == "BYTES" else f"TYPE_{kind}"


def type_of(entry: Any) -> str:
    """Returns the name of the data type in a part of a configuration."""
    types = messages().DataType
    known = entry.data_type in types.values()
    return str(types.Name(entry.data_type)) if known else f"of type {entry.data_type}"


def dims_of(spec: TensorSpec, *, batched: bool) -> list[int]:
    """Returns the dims of an input or output: its axes without the batch, -1 for a dynamic one.

    Raises:
        DeployError: It has no other axis. Triton would add one, under which the name means another
            shape than in the graph.
    """
    axes = spec.shape[1:] if batched else spec.shape
    if not axes:
        raise DeployError(
            f"Triton serves no tensor without axes besides the batch: {spec}",
            f"export the model with {spec.name} of shape [batch, 1]",
        )
    return [-1 if axis is None else axis for axis in axes]


def model_config(
    name: str,
    form: Form,
    golden: Reference,
    *,
    batching: Batching | None,
    labels: Sequence[str],
    parameters: Mapping[str, str],
) -> Any:
    """Returns the `ModelConfig` of a model.

    Args:
        batching: None for a graph without a batch axis.
        labels: Names of the classes; without effect unless there are as many as logits.
        parameters: More facts for the `parameters` field.
    """
    pb = messages()
    config = pb.ModelConfig(name=name)
    if form.platform:
        config.platform = form.platform
    else:
        config.backend = form.backend
    for spec in golden.input_specs:
        entry = config.input.add(name=spec.name, data_type=type_name(spec.dtype))
        entry.dims.extend(dims_of(spec, batched=golden.batched))
    for spec in golden.output_specs:
        entry = config.output.add(name=spec.name, data_type=type_name(spec.dtype))
        entry.dims.extend(dims_of(spec, batched=golden.batched))
        if has_labels(spec, golden, labels):
            entry.label_filename = LABELS
    if batching is not None:
        config.max_batch_size = batching.largest
        config.dynamic_batching.preferred_batch_size.extend(batching.preferred)
        config.dynamic_batching.max_queue_delay_microseconds = batching.delay
    kind = pb.ModelInstanceGroup.KIND_GPU if form.gpu else pb.ModelInstanceGroup.KIND_CPU
    config.instance_group.add(kind=kind, count=1)
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    for accelerator, settings in form.accelerators:
        accelerators.add(name=accelerator, parameters=settings)
    for size in sorted({1, batching.largest if batching else 1}):
        _add_warm_up(config, golden, size)
    config.response_cache.enable = False
    for key, value in sorted(parameters.items()):
        config.parameters[key].string_value = value
    return config


def has_labels(spec: TensorSpec, golden: Reference, labels: Sequence[str]) -> bool:
    """Whether the labels name the values of an output, and fit in a file of lines."""
    return (
        spec.name == golden.logits
        and spec.shape[1:] == (len(labels),)
        and all(label.isprintable() and label for label in labels)
    )


def warm_up_file(index: int) -> str:
    """Returns the name of the file with an input's warm-up row."""
    return f"input{index}"


def _add_warm_up(config: Any, golden: Reference, size: int) -> None:
    warm_up = config.model_warmup.add(name=f"golden row, batch {size}", batch_size=size, count=1)
    for index, spec in enumerate(golden.input_specs):
        entry = warm_up.inputs[spec.name]
        entry.data_type = messages().DataType.Value(type_name(spec.dtype))
        entry.dims.extend(golden.inputs[spec.name].shape[1:])
        entry.input_data_file = warm_up_file(index)


def text_of(config: Any) -> str:
    """Returns a configuration as the text of a config.pbtxt."""
    text_format = import_vendor("google.protobuf.text_format", INSTALL)
    return str(text_format.MessageToString(config))


def parse(text: str) -> Any:
    """Returns the configuration in the text of a config.pbtxt.

    Raises:
        ValueError: It cannot be parsed, or has a field that does not exist.
    """
    text_format = import_vendor("google.protobuf.text_format", INSTALL)
    try:
        return text_format.Parse(text, messages().ModelConfig())
    except text_format.ParseError as error:
        raise ValueError(str(error)) from error

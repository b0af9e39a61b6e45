"""A program becomes an ONNX graph: canonical bytes, and proof that it is what was asked for."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from google.protobuf.message import Message

from engines.base import TensorSpec
from engines.errors import DeployError

# The name every dynamic axis gets; the exporter's own (s40, s77, …) says nothing.
BATCH = "batch"
_STANDARD_DOMAINS = ("", "ai.onnx")


def export_graph(
    program: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    metadata: Mapping[str, str],
    opset: int | None = None,
) -> bytes:
    """Translates a program to ONNX and returns the serialized model.

    The bytes depend on the program, the names and the metadata alone: not on the folder, the
    time, or the process.

    Args:
        opset: Of the standard domain; None means the exporter's default.

    Raises:
        DeployError: An operator has no translation, or the graph is not the one asked for.
    """
    try:
        # The exporter prints its steps; they would end up between a user's JSON.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            translated = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[spec.name for spec in inputs],
                output_names=[spec.name for spec in outputs],
                opset_version=opset,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors share no public type
        raise DeployError(
            f"torch.onnx cannot translate the model: {error}",
            "the message names the operator; replace it in the model",
        ) from error
    if translated is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = translated.model_proto
    canonicalise(model, metadata)
    check_graph(model, inputs, outputs)
    return bytes(model.SerializeToString(deterministic=True))


def canonicalise(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Removes what depends on the folder and names the dynamic axes; sets our metadata."""
    _strip(model)
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = BATCH
    onnx.helper.set_model_props(model, dict(sorted(metadata.items())))


def _strip(message: Message) -> None:
    """Clears doc strings and metadata at every depth: they hold stack traces and paths."""
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in value if isinstance(value, Sequence) else (value,):
                _strip(child)


def check_graph(
    model: onnx.ModelProto, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
) -> None:
    """Checks that a graph is valid and has the signature that was asked for.

    Raises:
        DeployError: It is not valid ONNX, has an operator outside the standard domain, or its
            inputs or outputs differ from `inputs` and `outputs` in name, dtype or shape.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DeployError(f"the exported graph is not valid ONNX: {error}") from error
    foreign = sorted({n.op_type for n in model.graph.node if n.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise DeployError(
            f"the exported graph has operators outside ONNX's standard: {', '.join(foreign)}"
        )
    for wanted, values in ((inputs, model.graph.input), (outputs, model.graph.output)):
        found = tuple(spec_of(value) for value in values)
        if found != wanted:
            raise DeployError(
                f"the exported graph has {_list(found)}, but {_list(wanted)} was asked for",
                "a model that fixes its batch gives a static graph; remove the constant",
            )


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Returns name, dtype and shape of a graph's input or output."""
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def _list(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "nothing"

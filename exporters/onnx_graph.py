"""A program becomes an ONNX graph: canonical bytes, and proof that it is what was asked for."""

from __future__ import annotations

import contextlib
import gc
import io
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import Message
from torch import nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # public, but not listed

from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters import onnx_files, trace_errors
from exporters.constant_sizes import resize_by_constants
from exporters.onnx_nodes import attribute
from exporters.weight_map import refold

# The name every dynamic axis gets; the exporter's own (s40, s77, …) says nothing.
BATCH = "batch"
_STANDARD_DOMAINS = ("", "ai.onnx")
_TORCHSCRIPT_OPSET = 17


@dataclass(frozen=True)
class Translation:
    """A program translated to ONNX.

    Attributes:
        nodes: How many of each operator there were before anything was simplified.
        graphs: Graphs of the program, the simplest first, each made when it is asked for:
            slimmed by onnxslim, where that finds something; with constants and batch norms
            folded, and without what changes nothing, by onnxscript's optimizer; and as it was
            translated, if that is valid too.
    """

    nodes: Counter[str]
    graphs: Iterator[onnx.ModelProto]


def export_graph(
    program: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    metadata: Mapping[str, str],
    opset: int | None = None,
) -> Translation:
    """Translates a program to ONNX.

    The graph depends on the program, the names and the metadata alone: not on the folder, the
    time, or the process.

    Args:
        opset: Of the standard domain; None means the exporter's default.

    Raises:
        DeployError: An operator has no translation, or the graph is not the one asked for.
    """

    def translate(*, simplify: bool) -> tuple[Counter[str], onnx.ModelProto]:
        with trace_errors.recorded() as report, warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):  # of torch's own parts
                warnings.simplefilter("ignore", category)
            try:
                translated = torch.onnx.export(
                    _without_bf16_einsum(program),
                    dynamo=True,
                    input_names=[spec.name for spec in inputs],
                    output_names=[spec.name for spec in outputs],
                    opset_version=opset,
                    optimize=False,
                    verbose=False,
                )
                if translated is None:
                    raise RuntimeError("torch.onnx.export returned no program")
                nodes = Counter(node.op_type for node in translated.model.graph)
                if simplify:
                    translated.optimize()
                return nodes, translated.model_proto
            except Exception as error:  # the exporter's errors share no public type
                raise trace_errors.untranslated(error, report, program) from error

    def graphs(simplified: onnx.ModelProto) -> Iterator[onnx.ModelProto]:
        slim = _slimmed(simplified)
        if slim is not None:
            with contextlib.suppress(DeployError):
                yield finished(slim, inputs, outputs, metadata)
        yield simplified
        # Translated again, since few need it and a second copy of a large graph may not fit.
        with contextlib.suppress(DeployError):  # some are valid only once they are simplified
            yield finished(translate(simplify=False)[1], inputs, outputs, metadata)

    nodes, simplified = translate(simplify=True)
    refold(program, simplified)
    return Translation(nodes, graphs(finished(simplified, inputs, outputs, metadata)))


def _without_bf16_einsum(program: Any) -> Any:
    """Returns a program with products in the place of einsums, if those are of bfloat16.

    ONNX's Einsum does not take that type; its MatMul does.
    """
    einsum = torch.ops.aten.einsum.default
    if not any(
        node.target is einsum and node.meta["val"].dtype == torch.bfloat16
        for node in program.graph.nodes
    ):
        return program
    return program.run_decompositions({einsum: torch.export.default_decompositions()[einsum]})


def _slimmed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Returns a graph with fewer nodes, by onnxslim; None if it finds none to remove.

    It follows shapes through attention, where onnxscript's optimizer gives up: of Swin-T's 724
    nodes it leaves 444. Convolutional networks it leaves as they are.
    """
    import onnxslim

    if onnx_files.size(model) > onnx_files.LIMIT:
        return None  # it knows no external data
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with trace_errors.recorded():
        try:
            slimmed: onnx.ModelProto = onnxslim.slim(copied)
        except Exception:  # slimming is optional, so its errors are ignored
            return None
    if len(slimmed.graph.node) >= len(model.graph.node):
        return None
    # What a message was made of lives as long as it does, and what made it until it is collected:
    # four copies of all weights.
    fresh = onnx.ModelProto()
    fresh.CopyFrom(slimmed)
    del copied, slimmed
    gc.collect()
    return fresh


def trace_graph(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    metadata: Mapping[str, str],
    opset: int | None = None,
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """Exports by TorchScript: for what torch.export cannot trace.

    It records what one run did: what depended on the examples' values or sizes is frozen.

    Returns:
        The graph, and what the tracer warned of: places where something may be frozen.

    Raises:
        DeployError: The module cannot be traced, or the graph is not the one asked for.
    """
    file = io.BytesIO()
    names = [spec.name for spec in (*inputs, *outputs)]

    def export() -> None:
        torch.onnx.export(
            module,
            tuple(examples),
            file,  # type: ignore[arg-type]  # its stub knows no open files
            dynamo=False,
            input_names=names[: len(inputs)],
            output_names=names[len(inputs) :],
            dynamic_axes={name: {0: BATCH} for name in names},
            opset_version=opset or _TORCHSCRIPT_OPSET,
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace_errors.guarded("TorchScript", export)
    warned = tuple(
        dict.fromkeys(
            f"{warning.filename}:{warning.lineno}: {str(warning.message).splitlines()[0]}"
            for warning in caught
            if issubclass(warning.category, TracerWarning)
        )
    )
    model = onnx.load_model_from_string(file.getvalue())
    return finished(model, inputs, outputs, metadata), warned


def finished(
    model: onnx.ModelProto,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Returns a graph in its canonical form, checked; see `check_graph`."""
    resize_by_constants(model)
    canonicalise(model, metadata)
    check_graph(model, inputs, outputs)
    return model


def canonicalise(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Removes what depends on the folder and names the dynamic axes; sets our metadata."""
    _strip(model)
    # What can be inferred is left out: an optimizer may have changed a type and not said so.
    del model.graph.value_info[:]
    values = [*model.graph.input, *model.graph.output]
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
        # From a file, since one message cannot hold a large graph.
        with tempfile.TemporaryDirectory(prefix="assay-") as folder:
            path = Path(folder) / "model.onnx"
            onnx_files.write(model, path)
            onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DeployError(f"the exported graph is not valid ONNX: {error}") from error
    foreign = sorted({n.op_type for n in model.graph.node if n.domain not in _STANDARD_DOMAINS})
    if foreign:
        raise DeployError(
            f"the exported graph has operators outside ONNX's standard: {', '.join(foreign)}"
        )
    training = [node.name for node in model.graph.node if _trains(node, model)]
    if training:
        raise DeployError(
            f"the exported graph has nodes in training mode: {', '.join(training)}",
            "put the module in evaluation mode; a layer may have been left in training mode",
        )
    for wanted, values in ((inputs, model.graph.input), (outputs, model.graph.output)):
        specs = tuple(spec_of(value) for value in values)
        if specs != wanted:
            raise DeployError(
                f"the exported graph has {_list(specs)}, but {_list(wanted)} was asked for",
                "a model that fixes its batch gives a static graph; remove the constant",
            )


def _trains(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether a node computes as in training."""
    if node.op_type == "BatchNormalization":
        return bool(attribute(node, "training_mode", 0))
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:  # noqa: PLR2004
        return False
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    mode = constants.get(node.input[2])
    return mode is None or bool(onnx.numpy_helper.to_array(mode))


def spec_of(value: onnx.ValueInfoProto) -> TensorSpec:
    """Returns name, dtype and shape of a graph's input or output."""
    tensor = value.type.tensor_type
    untyped = tensor.elem_type == onnx.TensorProto.UNDEFINED
    dtype = "" if untyped else onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
    return TensorSpec(value.name, dtype, shape)


def _list(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "nothing"

"""Translates a program to a canonical ONNX graph, and checks its signature."""

from __future__ import annotations

import contextlib
import gc
import io
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from google.protobuf.message import Message
from torch import nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # public, but not listed

from engines import temporary
from engines.contract import TensorSpec
from engines.errors import DeployError
from exporters import onnx_files, trace_errors
from exporters.constant_sizes import make_sizes_constant
from exporters.onnx_nodes import attribute, spec_of
from exporters.weight_map import refold

# The name of the first axis; the exporter's own names (s40, s77, …) are arbitrary.
BATCH = "batch"
_STANDARD_DOMAINS = ("", "ai.onnx")
_TORCHSCRIPT_OPSET = 17


@dataclass(frozen=True)
class Translation:
    """A program translated to ONNX.

    Attributes:
        nodes: Number of nodes of each operator before any simplification.
        graphs: Graphs of the program, the simplest first, each made on demand. The first is
            slimmed by onnxslim, if that removes nodes. The next has constants and batch norms
            folded by onnxscript's optimizer. The last is unsimplified, if that is valid.
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

    The graph depends only on the program, the names and the metadata: not on the folder, the
    time, or the process.

    Args:
        opset: Version of the standard domain; None means the exporter's default.

    Raises:
        DeployError: An operator has no translation, or `check_graph` rejects the graph.
    """

    def translate(*, simplify: bool) -> tuple[Counter[str], onnx.ModelProto]:
        with trace_errors.recorded() as report, warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning):  # raised inside torch
                warnings.simplefilter("ignore", category)
            try:
                translated = torch.onnx.export(
                    _translatable(program),
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
        slim = slimmed(simplified)
        if slim is not None:
            with contextlib.suppress(DeployError):
                yield finished(slim, inputs, outputs, metadata)
        yield simplified
        # Translated again, since this is rare and two copies of a large graph may not fit.
        with contextlib.suppress(DeployError):  # some graphs are valid only once simplified
            yield finished(translate(simplify=False)[1], inputs, outputs, metadata)

    nodes, simplified = translate(simplify=True)
    refold(program, simplified)
    return Translation(nodes, graphs(finished(simplified, inputs, outputs, metadata)))


def _translatable(program: Any) -> Any:
    """Returns a program without operators that the exporter translates badly.

    - Einsums in bfloat16 become matrix products: ONNX's Einsum does not take that type.
    - An LSTM with projections (`proj_size`) becomes its steps: ONNX's LSTM has none.
    - Pooling to one pixel becomes a mean. Its own decomposition restores the strides of a tensor
      whose channels are last in memory, and in ONNX that is a Gather by computed indices.
    """
    einsum, pool = torch.ops.aten.einsum.default, torch.ops.aten.adaptive_avg_pool2d.default
    lstm = torch.ops.aten.lstm.input
    table = {}
    for node in program.graph.nodes:
        if node.target is einsum and node.meta["val"].dtype == torch.bfloat16:
            table[einsum] = torch.export.default_decompositions()[einsum]
        elif node.target is lstm and _has_projections(node):
            table[lstm] = torch.export.default_decompositions()[lstm]
        elif node.target is pool and node.args[0].meta["val"].stride()[1] == 1:
            table[pool] = _pool
    return program.run_decompositions(table) if table else program


def _has_projections(node: Any) -> bool:
    """Whether the hidden state of an LSTM is smaller than its cell's."""
    hidden, cell = (state.meta["val"].shape[-1] for state in node.args[1])
    return bool(hidden != cell)


def _pool(x: torch.Tensor, size: Sequence[int]) -> Any:
    return x.mean((-1, -2), keepdim=True) if list(size) == [1, 1] else NotImplemented


def slimmed(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """Returns a graph with fewer nodes, by onnxslim; None if it removes none.

    onnxslim follows shapes through attention, where onnxscript's optimizer gives up: it reduces
    Swin-T from 724 nodes to 444. It leaves convolutional networks as they are.
    """
    import onnxslim

    if onnx_files.size(model) > onnx_files.LIMIT:
        return None  # onnxslim does not handle external data
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with trace_errors.recorded():
        try:
            slimmed: onnx.ModelProto = onnxslim.slim(copied)
        except Exception:  # slimming is optional, so its errors are ignored
            return None
    if len(slimmed.graph.node) >= len(model.graph.node):
        return None
    # A protobuf message keeps alive the messages it was made of, and onnxslim's objects live until
    # they are collected. Together these hold four copies of all weights.
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
    """Exports by TorchScript, for models that torch.export cannot trace.

    TorchScript records one run: whatever depends on the examples' values or sizes is frozen.

    Returns:
        The graph, and the tracer's warnings, which name places where a value may be frozen.

    Raises:
        DeployError: The module cannot be traced, or `check_graph` rejects the graph.
    """
    file = io.BytesIO()
    names = [spec.name for spec in (*inputs, *outputs)]

    def export() -> None:
        torch.onnx.export(
            module,
            tuple(examples),
            file,  # type: ignore[arg-type]  # its stub omits open files
            dynamo=False,
            input_names=names[: len(inputs)],
            output_names=names[len(inputs) :],
            dynamic_axes={
                spec.name: {
                    i: spec.axes[i] if spec.axes else BATCH
                    for i, axis in enumerate(spec.shape)
                    if axis is None
                }
                for spec in (*inputs, *outputs)
            },
            opset_version=opset or _TORCHSCRIPT_OPSET,
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace_errors.guarded(trace_errors.TORCHSCRIPT, export)
    warned = tuple(
        dict.fromkeys(
            f"{warning.filename}:{warning.lineno}: {str(warning.message).splitlines()[0]}"
            for warning in caught
            if issubclass(warning.category, TracerWarning)
        )
    )
    model = onnx.load_model_from_string(file.getvalue())
    _declare_shapes(model, outputs)
    return finished(model, inputs, outputs, metadata), warned


def _declare_shapes(model: onnx.ModelProto, outputs: tuple[TensorSpec, ...]) -> None:
    """Gives outputs the sizes that TorchScript's shape inference leaves open."""
    for value, spec in zip(model.graph.output, outputs, strict=True):
        dims = value.type.tensor_type.shape.dim
        if len(dims) == len(spec.shape):
            for dim, size in list(zip(dims, spec.shape, strict=True))[1:]:
                if size is not None and not dim.HasField("dim_value"):
                    dim.dim_value = size


def finished(
    model: onnx.ModelProto,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """Puts a graph into its canonical form, checks it (see `check_graph`) and returns it."""
    make_sizes_constant(model)
    canonicalise(model, metadata, {spec.name: spec.axes for spec in (*inputs, *outputs)})
    check_graph(model, inputs, outputs)
    return model


def canonicalise(
    model: onnx.ModelProto,
    metadata: Mapping[str, str],
    axes: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Removes what depends on this machine, names the dynamic axes and sets the metadata.

    Args:
        axes: By input or output, the names of its axes; by default the first is the batch.
    """
    _strip(model)
    # Inferred types are dropped: an optimizer may have changed a type without updating them.
    del model.graph.value_info[:]
    values = [*model.graph.input, *model.graph.output]
    for value in values:
        names = (axes or {}).get(value.name) or (BATCH,)
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = names[index] if index < len(names) else f"{value.name}_{index}"
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
    """Checks that a graph is valid and has the expected signature.

    Raises:
        DeployError: It is not valid ONNX, has an operator outside the standard domain or a node
            in training mode, or its inputs or outputs differ from `inputs` and `outputs` in
            name, dtype or shape.
    """
    try:
        # Checked as a file, since one message cannot hold a large graph.
        with temporary.folder() as folder:
            path = folder / "model.onnx"
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
                f"the exported graph has {_list(specs)}, but {_list(wanted)} was expected",
                "take the batch size from the input; a model that fixes it gives a static graph",
            )


def _trains(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether a node is in training mode."""
    if node.op_type == "BatchNormalization":
        return bool(attribute(node, "training_mode", 0))
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:  # noqa: PLR2004
        return False
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    mode = constants.get(node.input[2])
    return mode is None or bool(onnx.numpy_helper.to_array(mode))


def _list(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(map(str, specs)) or "nothing"

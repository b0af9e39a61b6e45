"""Exports an ONNX file as a model: its golden inputs, its reference, and its other precisions."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from engines.contract import TensorSpec
from engines.errors import DeployError, UsageError
from exporters import DEFAULT_PRECISION, PRECISIONS, half_graph, onnx_files
from exporters.graph_run import GraphRun, constants
from exporters.onnx_graph import slimmed
from exporters.onnx_nodes import inputs_of, spec_of, with_fixed_constants
from pipeline.exporting import calibration
from pipeline.exporting.graphs import Draft, Exported, quantized, with_weights
from pipeline.golden import graph_ranges, graph_reference, graph_rows
from pipeline.golden import rows as golden_rows
from pipeline.golden.file import Reference
from pipeline.golden.graph_ranges import SizedRows, run_rows
from pipeline.verification import limits
from pipeline.workflow import console, phases
from pipeline.workflow.digests import sha256_file

_NAMED = 3  # how many nodes are printed of those kept in fp32
# How often a graph is cast again with more of its nodes in fp32.
_CASTS = 6
# The first opset with quantization by channel.
_QUANTIZED_OPSET = 13
_CALIBRATION_SEED = 1


@dataclass(frozen=True)
class GraphModel:
    """A user's graph and its golden inputs.

    Attributes:
        sizes: Rows of the usual size, and of the least and the largest if they differ.
        batched: The first axis of all inputs and outputs is the batch.
    """

    path: Path
    model: onnx.ModelProto
    sizes: tuple[SizedRows, ...]
    batched: bool


def read(path: Path) -> onnx.ModelProto:
    """Returns a user's graph, in which each output has a type.

    Raises:
        DeployError: It is not a valid graph, or takes or gives something else than tensors.
    """
    model = onnx_files.read(path)
    try:
        _check(path, model)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise DeployError(f"{path} is not valid ONNX: {error}", "export it again") from error
    if not inputs_of(model.graph):
        raise DeployError(
            f"{path} takes no inputs, so its outputs are constants", "give a graph with inputs"
        )
    for value in (*inputs_of(model.graph), *model.graph.output):
        kind = value.type.WhichOneof("value")
        dtype = spec_of(value).dtype if kind == "tensor_type" else ""
        if kind != "tensor_type" or np.dtype(dtype or "O").kind not in "biuf":
            raise DeployError(
                f"{path}: {value.name} is {dtype or kind or 'untyped'}, not a tensor of numbers",
                "judge a graph whose inputs and outputs are tensors of numbers",
            )
    return model


def _check(path: Path, model: onnx.ModelProto) -> None:
    """Checks a graph; outputs may lack shapes, which runtimes do not need."""
    without = [v for v in model.graph.output if not v.type.tensor_type.HasField("shape")]
    if not without or onnx_files.size(model) > onnx_files.LIMIT:
        onnx.checker.check_model(path)
        return
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for value in copied.graph.output:
        if value.type.WhichOneof("value") == "tensor_type":
            value.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(copied)


@dataclass(frozen=True)
class Asked:
    """What a user asks of the golden inputs.

    Attributes:
        shapes: The sizes of the inputs' axes; see `graph_rows.parse`.
        inputs: An .npz file with rows, to which generated ones are added.
        golden_rows: How many generated rows of the usual size; None means the default.
        calibration: An .npz file with rows to quantize by, instead of generated ones.
    """

    shapes: tuple[str, ...] = ()
    inputs: Path | None = None
    golden_rows: int | None = None
    calibration: Path | None = None


def prepare(path: Path, asked: Asked) -> GraphModel:
    """Reads a graph and makes its golden inputs.

    Raises:
        UsageError: The size of a dynamic axis is not given.
        DeployError: The graph or the inputs cannot be used.
    """
    model = read(path)
    specs = [spec_of(value) for value in inputs_of(model.graph)]
    shaped = [v for v in model.graph.output if v.type.tensor_type.HasField("shape")]
    outputs = [spec_of(value) for value in shaped]
    shapes = graph_rows.parse(asked.shapes)
    count = asked.golden_rows or graph_rows.MADE
    may_batch = all(None in spec.shape[:1] for spec in (*specs, *outputs))
    sizes = graph_rows.rows(specs, shapes, asked.inputs, count, batched=may_batch)
    run = GraphRun(model, exactly=True)
    batched = may_batch and graph_reference.takes_batches(run, sizes[0], limits.ALONE_TOLERANCE)
    if may_batch and not batched:
        alone = graph_rows.rows(specs, shapes, asked.inputs, count, batched=False)
        # Says what is wrong with the inputs, if that is why they do not run in a batch.
        run_rows(run, alone[0].take([0, 1]), batched=False)
        console.say(
            "export: the first axis is not the batch: a row depends on others, so each row is one"
            " run of the graph"
        )
        sizes = alone
    _separate_axes(model, sizes, batched=batched)
    _set_true_outputs(model, run, sizes[0], batched=batched)
    return GraphModel(path, model, sizes, batched)


def _separate_axes(model: onnx.ModelProto, sizes: Sequence[SizedRows], *, batched: bool) -> None:
    """Takes the name from axes that have one name and several sizes, in place.

    Some exporters name every open axis "?", and backends take axes of one name for equal.
    """
    known: dict[str, set[tuple[int, ...]]] = {}
    axes = []
    for value in inputs_of(model.graph):
        for index, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param and not (batched and index == 0):
                axes.append(dim)
                position = index if batched else index + 1
                of_sizes = tuple(part.inputs[value.name].shape[position] for part in sizes)
                known.setdefault(dim.dim_param, set()).add(of_sizes)
    for dim in axes:
        if len(known[dim.dim_param]) > 1:
            dim.ClearField("dim_param")


def _set_true_outputs(
    model: onnx.ModelProto, run: GraphRun, rows: SizedRows, *, batched: bool
) -> None:
    """Makes a graph declare the axes that its outputs have, in place.

    Some exporters write none, or others than the graph gives.

    Args:
        run: The graph in float64.
    """
    computed = run_rows(run, rows.take([0]), batched=batched)
    for value in model.graph.output:
        shape = computed[value.name].shape[0 if batched else 1 :]
        declared, kind = spec_of(value), value.type.tensor_type
        actual = TensorSpec(value.name, declared.dtype, shape)
        if kind.HasField("shape") and declared.accepts(actual):
            continue
        if kind.HasField("shape"):
            console.say(f"export: the graph declares {declared}, but gives {list(shape)}")
        del kind.shape.dim[:]
        kind.shape.SetInParent()
        for index in range(len(shape)):
            kind.shape.dim.add(dim_param=f"{value.name}_{index}")


def readable(path: Path, golden: Reference) -> onnx.ModelProto:
    """Returns a graph that declares the outputs it gives, if it runs on golden inputs."""
    model = read(path)
    rows = SizedRows(golden.inputs, golden.cases)
    with contextlib.suppress(DeployError, KeyError):  # the verdict says what is wrong
        _set_true_outputs(model, GraphRun(model, exactly=True), rows, batched=golden.batched)
    return model


def export(path: Path, name: str, precision: str, asked: Asked, *, max_drop: float) -> Exported:
    """Makes the graph of an ONNX file at a precision, and its golden file.

    Args:
        name: The model's name.
        max_drop: See `pipeline.golden.file.Reference`.

    Raises:
        UsageError: The size of a dynamic axis is not given, or does not fit the graph.
        DeployError: A step failed.
    """
    phases.start("reading the graph")
    source = prepare(path, asked)
    row = PRECISIONS[precision]
    to_cast = _to_cast(source, precision)
    served, kept = source.model, dict[str, str]()
    if row.quantized and not source.batched:
        raise DeployError(
            f"{precision} needs rows to calibrate on, and {path} takes no batches of rows",
            "export it in another precision, or with a batch as the first axis of all inputs and"
            " outputs",
        )
    if to_cast or row.quantized:
        fixed = with_fixed_constants(source.model)
        source = dataclasses.replace(source, model=fixed)
    if to_cast:
        phases.start(f"casting to {precision}")
        served, kept = _halved(source, precision)
    elif row.quantized:
        least = max(_QUANTIZED_OPSET, row.opset or 0)
        served = half_graph.at_opset(source.model, least)
        served = slimmed(served) or served
    metadata = {entry.key: entry.value for entry in source.model.metadata_props}
    metadata |= {
        "assay.model": name,
        "assay.precision": precision,
        "assay.kept_in_fp32": json.dumps([*kept]),
        "assay.labels": "[]",
        "assay.preprocessing": "none",
        "assay.graph": sha256_file(source.path),
        "assay.dataset": "",
    }

    def finish(graph: onnx.ModelProto) -> onnx.ModelProto:
        finished = onnx.ModelProto()
        finished.CopyFrom(graph)
        onnx.helper.set_model_props(finished, dict(sorted(metadata.items())))
        return finished

    reference = _reference(source, served, precision, max_drop)
    carried = {
        key: numpy_helper.to_array(tensor)
        for key, tensor in constants(served).items()
        if tensor.data_type in half_graph.FLOATS and np.prod(tensor.dims) > 1
    }
    notes: dict[str, Any] = {"warnings": [], "removed": {}}
    draft = Draft(finish(served), None, reference, carried, notes=notes)
    if row.quantized:
        draft = quantized(draft, precision, _calibration(source, asked.calibration), finish)
    return with_weights(draft)


def in_precision(source: GraphModel, precision: str) -> GraphModel:
    """Returns a model cast to a precision that is not quantized, as `export` casts it.

    Raises:
        UsageError: The graph has another half type.
    """
    if not _to_cast(source, precision):
        return source
    source = dataclasses.replace(source, model=with_fixed_constants(source.model))
    return dataclasses.replace(source, model=_halved(source, precision)[0])


def _to_cast(source: GraphModel, precision: str) -> bool:
    """Whether the graph is in fp32 and the precision is a half type.

    Raises:
        UsageError: The graph has a half type, which is not the precision.
    """
    own = half_graph.precision_of(source.model)
    if own not in (DEFAULT_PRECISION, precision):
        raise UsageError(
            f"{source.path} computes in {own}, so it cannot be exported in {precision}",
            f"give --precision {own}, or the graph in {DEFAULT_PRECISION}",
        )
    return own != precision and PRECISIONS[precision].dtype != PRECISIONS[DEFAULT_PRECISION].dtype


def _halved(source: GraphModel, precision: str) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Returns the graph in a half type, and the nodes that stay in fp32, with the reason."""
    least = PRECISIONS[precision].opset or 0
    if any(node.op_type == "Upsample" for node in source.model.graph.node):
        least = max(least, _QUANTIZED_OPSET)  # it became Resize, of which ONNX infers the types
    model = half_graph.at_opset(source.model, least)
    beyond: dict[str, str] = {}
    for _ in range(_CASTS):
        half = half_graph.cast(model, precision, beyond)
        more = graph_ranges.out_of_range(half.graph, source.sizes, batched=source.batched)
        named = half_graph.originals(half.graph, more)
        if not named.keys() - beyond.keys():
            break
        beyond |= named
    for node, why in [*half.kept.items()][:_NAMED]:
        console.say(f"export: kept in fp32: {node} {why}")
    if len(half.kept) > _NAMED:
        console.say(f"export: kept in fp32: {len(half.kept) - _NAMED} more nodes")
    return half.graph, half.kept


def _reference(
    source: GraphModel, served: onnx.ModelProto, precision: str, max_drop: float
) -> Reference:
    measured = []
    for rows in source.sizes:
        phases.start(f"running {len(rows.cases)} rows in float64 and {precision}")
        try:
            part = graph_reference.measure(
                source.model,
                served,
                rows,
                batched=source.batched,
                noise_runs=limits.NOISE_RUNS,
            )
        except DeployError as error:
            if rows is not source.sizes[0]:
                sizes = (f"{n} of {[*array.shape[1:]]}" for n, array in rows.inputs.items())
                error.message += f" (with a row of {', '.join(sizes)}; the usual size runs)"
            raise
        measured.append(part)
    first, *others = (
        part.as_reference(precision, max_drop, batched=source.batched) for part in measured
    )
    reference = dataclasses.replace(first, others=tuple(others))
    return reference.checked("graph", "check its weights, or give other --inputs")


def _calibration(source: GraphModel, file: Path | None) -> calibration.Calibration:
    """Returns the rows of a file to calibrate on, or generated ones."""
    if file is not None:
        return calibration.of_rows(golden_rows.read(file, "--calibration"), file.name)
    specs = [spec_of(value) for value in inputs_of(source.model.graph)]
    sizes = [source.sizes[0].inputs[spec.name].shape[1:] for spec in specs]
    rows = {
        spec.name: graph_rows.made(spec, size, calibration.CALIBRATION_ROWS, _CALIBRATION_SEED)
        for spec, size in zip(specs, sizes, strict=True)
    }
    return calibration.of_rows(rows, "generated inputs")

"""Turns a served module into a graph: traces, simplifies and quantizes it."""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch

import engines
from engines import hardware
from engines.contract import Array, OpenOptions, TensorSpec
from engines.errors import DeployError, NotAvailableError
from exporters import PRECISIONS, attention, weight_map, weight_quantized
from exporters.module import Served
from exporters.onnx_describe import describe
from exporters.onnx_graph import BATCH, export_graph, finished, trace_graph
from exporters.onnx_nodes import inputs_of, spec_of
from exporters.quantize import Quantized, check_rows
from pipeline.exporting import calibration
from pipeline.golden import noise
from pipeline.golden.file import Golden, Reference
from pipeline.verification import engine_proof, limits, noise_floor, verdict
from pipeline.verification.batches import batch_sizes
from pipeline.verification.graph_file import as_it_says
from pipeline.verification.graph_range import out_of_range
from pipeline.verification.weight_audit import weights_of
from pipeline.workflow import console, phases
from pipeline.workflow.artifacts import GRAPH_SUBJECT

_NAMED = 3  # how many values that leave the range an error names
# The newest opset that the exporter and ONNX Runtime support.
_NEWEST_OPSET = 23


@dataclass(frozen=True)
class Source:
    """What to export, and how.

    Attributes:
        served: The model at the precision.
        program: Its torch.export program; None means that TorchScript traces it.
        reference: Outputs at the precision and of the float64 model.
        opset: None means the exporter's own, or the first that has the precision.
        axes: By input, the names of its dynamic axes besides the batch, by their number.
    """

    served: Served
    program: Any
    reference: Reference
    metadata: Mapping[str, str]
    opset: int | None
    axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The graph's inputs and outputs, with the names of their dynamic axes."""

        def named(spec: TensorSpec) -> TensorSpec:
            known = {0: BATCH, **self.axes.get(spec.name, {})}
            axes = (known.get(i, f"{spec.name}_{i}") for i in range(len(spec.shape)))
            return dataclasses.replace(spec, axes=tuple(axes))

        inputs, outputs = self.reference.input_specs, self.reference.output_specs
        return tuple(map(named, inputs)), tuple(map(named, outputs))


@dataclass(frozen=True)
class Exported:
    """An exported graph, and what belongs to it.

    Attributes:
        program: The torch.export program; None if TorchScript traced the model or the graph is
            quantized.
        golden: The golden file, with the digests of the weights in `graph`.
        cpu_graph: The quantized graph for CPUs; None if they run `graph`.
        notes: Entries for the graph's description.
    """

    graph: onnx.ModelProto
    program: Any
    golden: Golden
    cpu_graph: onnx.ModelProto | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """Returns what is known of the graph, in its JSON form."""
        inputs = [spec_of(value) for value in inputs_of(self.graph.graph)]
        return {
            **describe(self.graph).document(),
            **self.notes,
            "sizes": self.golden.sizes(inputs),
        }


@dataclass(frozen=True)
class Draft:
    """An exported graph before its weights are recorded in the golden file.

    Attributes:
        weights: By the name of each parameter, the tensor that carries it in `graph`.
    """

    graph: onnx.ModelProto
    program: Any
    reference: Reference
    weights: Mapping[str, Array]
    cpu_graph: onnx.ModelProto | None = None
    notes: dict[str, Any] = field(default_factory=dict)


def export(source: Source, calibrate: Callable[[], calibration.Calibration]) -> Exported:
    """Exports a module; at a quantized precision, on the rows that `calibrate` returns.

    Raises:
        DeployError: A step failed; the message says which, and where in the model.
    """
    draft = _traced(source) if source.program is None else _translated(source)
    specs = source.specs

    def finish(graph: onnx.ModelProto) -> onnx.ModelProto:
        return finished(graph, *specs, source.metadata)

    if PRECISIONS[source.reference.precision].quantized:
        draft = quantized(draft, source.reference.precision, calibrate(), finish)
    return with_weights(draft)


def with_weights(draft: Draft) -> Exported:
    """Returns a graph with its golden file, which has the digests of its weights."""
    phases.start("digests of the weights")
    golden = draft.reference.with_weights(weights_of(draft.weights, draft.graph))
    return Exported(draft.graph, draft.program, golden, draft.cpu_graph, draft.notes)


def _opset(source: Source) -> int | None:
    return source.opset or PRECISIONS[source.reference.precision].opset


def _examples(source: Source) -> list[torch.Tensor]:
    return [torch.from_numpy(array[:2].copy()) for array in source.reference.inputs.values()]


def _translated(source: Source) -> Draft:
    """Translates a program to a graph; in another way, if the usual one does not give the model."""
    draft = failure = None
    try:
        draft, matches = _translate(source, source.program, _opset(source))
        if matches:
            return draft
    except DeployError as error:
        failure = error
    fault = "does not match the model" if failure is None else "fails"
    for way, translate in _other_ways(source):
        try:
            other, matches = translate()
        except DeployError:
            continue
        if matches:
            console.say(f"export: translated {way}, since the usual translation {fault}")
            notes = {**other.notes, "translated": way}
            return dataclasses.replace(other, program=source.program, notes=notes)
    if draft is None:
        assert failure is not None  # noqa: S101 - for mypy
        raise failure
    return draft


def _other_ways(source: Source) -> Iterator[tuple[str, Callable[[], tuple[Draft, bool]]]]:
    """Yields other translations, in words, with a function that returns what `_translate` does."""
    opset = _opset(source)
    if attention.has_attention(source.program):
        yield (
            "with attention written out",
            lambda: _translate(source, attention.write_out(source.program), opset),
        )
    if source.opset is None and (opset or 0) < _NEWEST_OPSET:
        yield (
            f"to opset {_NEWEST_OPSET}",
            lambda: _translate(source, source.program, _NEWEST_OPSET),
        )

    def trace() -> tuple[Draft, bool]:
        draft = _traced(source)
        return draft, _verdict(draft.graph, source) != "mismatch"

    yield "by TorchScript", trace


def _translate(source: Source, program: Any, opset: int | None) -> tuple[Draft, bool]:
    """Translates a program to the simplest graph that is still the model.

    Returns:
        The simplest graph that is not a mismatch, or the first one if all are; and whether it
        matches the model.
    """
    specs = source.specs
    phases.start("translating to ONNX")
    translated = export_graph(program, *specs, source.metadata, opset)
    chosen, matches = _simplest(translated.graphs, source)
    phases.start("following the weights into the graph")
    weights = weight_map.trace_weights(program, chosen, limits.WEIGHT_ROUNDINGS)
    notes: dict[str, Any] = {"warnings": [], "removed": _removed(translated.nodes, chosen)}
    return Draft(chosen, source.program, source.reference, weights, notes=notes), matches


def _simplest(graphs: Iterator[onnx.ModelProto], source: Source) -> tuple[onnx.ModelProto, bool]:
    """Returns the first graph that is not a mismatch, or the first one if all are.

    Args:
        graphs: The simplest first.

    Returns:
        The graph, and whether it is not a mismatch.
    """
    simplest = candidate = next(graphs)
    phases.start("judging the graph")
    while _verdict(candidate, source) == "mismatch":
        plainer = next(graphs, None)
        if plainer is None:
            return simplest, False
        candidate = plainer
    if candidate is not simplest:
        console.say("export: simplified less, since the simplest graph does not match the model")
    return candidate, True


def _traced(source: Source) -> Draft:
    specs = source.specs
    phases.start("tracing by TorchScript")
    graph, warned = trace_graph(
        source.served, _examples(source), *specs, source.metadata, source.opset
    )
    if beyond := out_of_range(graph, source.reference):
        raise DeployError(
            f"--exporter torchscript keeps nothing in fp32, and {source.reference.precision} cannot"
            f" hold: {'; '.join(beyond[:_NAMED])}",
            "export in a precision with the range of fp32",
        )
    weights = weight_map.traced_weights(source.served, graph, limits.WEIGHT_ROUNDINGS)
    notes = {"warnings": list(warned), "removed": {}}
    return Draft(graph, None, source.reference, weights, notes=notes)


def quantized(
    draft: Draft,
    precision: str,
    by: calibration.Calibration,
    finish: Callable[[onnx.ModelProto], onnx.ModelProto],
) -> Draft:
    """Quantizes a graph in float32.

    Args:
        by: The rows to calibrate on.
        finish: Puts a graph into the form in which it is written.
    """
    check_rows(draft.graph, by.rows)
    ranges, selection = (len(next(iter(part.values()))) for part in (by.rows, by.selection))
    console.say(
        f"export: calibrating on {by.source}: {ranges} for the ranges of values, {selection} to"
        " choose among the calibrations"
    )
    phases.start("calibrating")
    by, wanted = calibration.with_finite_outputs(draft.graph, by)
    quantizer = importlib.import_module(PRECISIONS[precision].quantizer)
    result: Quantized = quantizer.quantize(
        draft.graph, by.rows, lambda graph: calibration.judge(graph, wanted, by)
    )
    graph = finish(result.graph)
    cpu_graph = None
    if result.cpu_graph is not None:
        cpu_graph = finish(result.cpu_graph)
    judged_by = _by_quantized(draft.reference, graph)
    others = tuple(_by_quantized(other, graph) for other in draft.reference.others)
    judged_by = dataclasses.replace(judged_by, others=others)
    notes = {
        **draft.notes,
        "calibration": {
            "source": by.source,
            "rows": len(next(iter(by.rows.values()))),
            "method": result.method,
            "scores": {
                name: {"accuracy": accuracy, "sqnr": sqnr}
                for name, (_, accuracy, sqnr) in result.scores.items()
            },
            "failed": result.failed,
            "in_float": result.in_float,
        },
    }
    return Draft(
        graph, None, judged_by, weight_quantized.quantized(draft.weights, graph), cpu_graph, notes
    )


def _by_quantized(reference: Reference, graph: onnx.ModelProto) -> Reference:
    """Returns a reference whose noise is that of a quantized graph."""
    native = calibration.run(graph, reference.inputs)
    exact = reference.reference
    yardstick = {n: noise_floor.pooled(noise.measure(exact[n], [native[n]])) for n in native}
    return dataclasses.replace(reference, native=native, noise=yardstick)


def _verdict(graph: onnx.ModelProto, source: Source) -> verdict.Status:
    """Judges a graph as it is on the golden inputs; "not run" if nothing here can run it.

    A graph to be quantized is judged at its own precision.

    One batch size suffices: simplifying a graph does not make it depend on the batch size.
    """
    computed_in = PRECISIONS[source.reference.precision].computed_in
    reference = dataclasses.replace(source.reference, precision=computed_in)
    options = OpenOptions("cpu", threads=hardware.available_cpus(), optimize=False)
    with as_it_says(graph) as path:
        try:
            session = engines.get(engine_proof.GRAPH_RUNNER).open(path, options)
        except NotAvailableError:
            return "not run"
        with closing(session):
            sizes = batch_sizes(len(reference.cases), session.batch)[-1:]
            return verdict.judge(GRAPH_SUBJECT, session, reference, sizes=sizes).status


def _removed(before: Counter[str], after: onnx.ModelProto) -> dict[str, int]:
    """Returns how many nodes of each operator were removed."""
    counts = Counter(before)
    counts.subtract(node.op_type for node in after.graph.node)
    return {name: count for name, count in sorted(counts.items()) if count > 0}

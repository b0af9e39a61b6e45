"""The commands on ONNX files that are no stage: `diff` and `reduce`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import engines
import exporters
from engines import temporary
from engines.errors import ParityError, UsageError, suggestion
from pipeline.cli.flags import limit, limiting, print_as, printing
from pipeline.workflow import console
from pipeline.workflow.artifacts import GOLDEN, GRAPH, GRAPH_SUBJECT

_path = click.Path(path_type=Path)
_inputs = click.option("--inputs", type=_path, help=".npz file of inputs, an array for each.")
_shape = click.option(
    "--shape",
    multiple=True,
    metavar="LIST",
    help="Sizes of the inputs, as in images=1x3x320x320; a size may be a range,"
    " LEAST:USUAL:LARGEST.",
)


def _words(lists: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for text in lists for word in text.split(",") if word)


@click.command()
@click.argument("graph", metavar="A", type=_path)
@click.argument("other", metavar="B", type=_path)
@click.option(
    "--precision",
    default=exporters.DEFAULT_PRECISION,
    show_default=True,
    help="The precision of B, by whose rounding it is judged.",
)
@_inputs
@_shape
@limiting
@printing
def diff(
    graph: Path,
    other: Path,
    precision: str,
    inputs: Path | None,
    shape: tuple[str, ...],
    **values: Any,
) -> None:
    """Judge the ONNX graph B by the graph A, in float64."""
    from exporters import onnx_files
    from pipeline.exporting import onnx_models
    from pipeline.report import verify as verdict_report
    from pipeline.verification import engine_proof, limits
    from pipeline.verification.acceptance import require_pass
    from pipeline.workflow.digests import require_file

    print_as(values)
    limit(values)
    known = [name for name in exporters.PRECISIONS if name not in exporters.QUANTIZED]
    if precision not in known:
        raise UsageError(f"diff does not judge in {precision!r}", suggestion(precision, known))
    for path in (graph, other):
        require_file(path, "give the path of an ONNX graph")
    asked = onnx_models.Asked(_words(shape), inputs)
    with temporary.folder() as folder:
        golden = folder / GOLDEN.name
        exported = onnx_models.export(graph, str(graph), precision, asked, max_drop=limits.MAX_DROP)
        exported.golden.save(golden)
        judged = folder / GRAPH.name
        onnx_files.write(onnx_models.readable(other, exported.golden), judged)
        verdict = engine_proof.prove(
            GRAPH_SUBJECT, judged, golden, precision, device="auto", threads=1, elsewhere=True
        )
    if verdict.audit is not None and verdict.audit.note:
        note = f"they are not in {other.name} as they are in {graph.name}"
        verdict = dataclasses.replace(verdict, audit=dataclasses.replace(verdict.audit, note=note))
    verdict = dataclasses.replace(verdict, subject=other.name)
    verdict_report.show([verdict])
    console.document(dataclasses.asdict(verdict))
    try:
        require_pass([verdict], graph.name)
    except ParityError as error:
        error.hint = f"`assay inspect` describes both; the model is {graph.name}"
        raise


@click.command()
@click.argument("graph", metavar="FILE", type=_path)
@click.option("--engine", default="onnxruntime", show_default=True, help="The engine that fails.")
@click.option(
    "--precision", help="Cast the graph to fp16 or bf16 first, as `assay export` does [its own]."
)
@click.option("--output", type=_path, help="The smaller graph [FILE-reduced.onnx].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@_inputs
@_shape
@limiting
@printing
def reduce(
    graph: Path,
    engine: str,
    precision: str | None,
    output: Path | None,
    device: str,
    inputs: Path | None,
    shape: tuple[str, ...],
    **values: Any,
) -> None:
    """Write the smallest part of an ONNX graph on which an engine still fails."""
    import numpy as np

    from exporters import onnx_files
    from pipeline.exporting import onnx_models
    from pipeline.verification import reduction
    from pipeline.workflow.digests import require_file

    print_as(values)
    limit(values)
    graphical = [name for name in engines.names() if engines.get(name).source == "graph"]
    if engine not in graphical:
        raise UsageError(f"{engine!r} builds no ONNX graphs", suggestion(engine, graphical))
    known = [name for name in exporters.PRECISIONS if name not in exporters.QUANTIZED]
    if precision is not None and precision not in known:
        raise UsageError(f"reduce does not cast to {precision!r}", suggestion(precision, known))
    require_file(graph, "give the path of an ONNX graph")
    target = output or graph.with_name(f"{graph.stem}-reduced.onnx")
    data = target.with_suffix(".npz")
    source = onnx_models.prepare(graph, onnx_models.Asked(_words(shape), inputs))
    if precision is not None:
        source = onnx_models.in_precision(source, precision)
    smaller = reduction.reduce(
        source.model, source.sizes, engine, batched=source.batched, device=device
    )
    onnx_files.write(smaller.model, target)
    arrays = {
        # numpy has no bfloat16, whose values float32 holds exactly.
        name: array if array.dtype.isbuiltin else array.astype(np.float32)
        for name, array in smaller.inputs.items()
    }
    np.savez(data, **arrays)  # type: ignore[arg-type]  # its stub is too narrow
    few, many = smaller.nodes
    console.result(f"{engine}: {smaller.failure.kind}: {smaller.failure.message}")
    console.result(f"{target}: {few} of {many} nodes; inputs for it: {data}")
    console.document(
        {
            "file": str(target),
            "inputs": str(data),
            "kind": smaller.failure.kind,
            "message": smaller.failure.message,
            "nodes": few,
            "nodes_before": many,
        }
    )


COMMANDS = (diff, reduce)

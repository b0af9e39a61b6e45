"""Finds the smallest part of a graph that an engine still fails on, to send to its vendor."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

import engines
from engines import temporary
from engines.checks import choose_device
from engines.contract import Array, BuildOptions, OpenOptions
from engines.errors import CrashedError, DeployError, NotAvailableError
from exporters import half_graph, onnx_files, typed_graph
from exporters.graph_run import GraphRun
from exporters.onnx_nodes import graphs_of, inputs_of, spec_of
from pipeline.golden import graph_reference
from pipeline.golden.graph_ranges import SizedRows
from pipeline.verification import limits, verdict
from pipeline.workflow import console, worker
from pipeline.workflow.artifacts import GRAPH

# Rows on which parts of a graph are compared.
_ROWS = 3
# Runs at most to remove single nodes.
_REMOVALS = 60


@dataclass(frozen=True)
class Failure:
    """How an engine fails on a graph.

    Attributes:
        kind: "crashed", "refused" (it cannot be built), "failed" (it cannot be opened or run) or
            "mismatch".
        message: What it said.
    """

    kind: str
    message: str


@dataclass(frozen=True)
class Reduction:
    """A part of a graph that fails as the whole does.

    Attributes:
        model: The part; its inputs are values of the graph.
        inputs: Inputs for it, by name.
        nodes: How many nodes it has, and how many the graph has.
    """

    model: onnx.ModelProto
    inputs: dict[str, Array]
    failure: Failure
    nodes: tuple[int, int]


class _Parts:
    """Parts of a graph, from one node to another, with inputs for them."""

    def __init__(self, model: onnx.ModelProto, rows: SizedRows, *, batched: bool) -> None:
        self.model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        self._given = {
            name: node
            for node in model.graph.node
            if node.op_type == "Constant"
            for name in node.output
        }
        self._halves = typed_graph.half_values(model)
        self._rows: list[dict[str, Array]] = []
        for index in range(len(rows.cases)):
            part = slice(index, index + 1)
            feeds = {n: (a[part] if batched else a[index]) for n, a in rows.inputs.items()}
            values = dict(feeds)

            def keep(
                _node: onnx.NodeProto,
                name: str,
                value: Array,
                _inputs: list[Array | None],
                values: dict[str, Array] = values,
            ) -> Array:
                if isinstance(value, np.ndarray):
                    values[name] = value
                return value

            GraphRun(model, exactly=False, hook=keep)(feeds)
            self._rows.append(values)

    def part(
        self, chosen: Sequence[int], outputs: Sequence[str]
    ) -> tuple[onnx.ModelProto, SizedRows]:
        """Returns the graph of some nodes, in their order, and rows for its inputs."""
        nodes = [self.nodes[index] for index in chosen]
        results = {name for node in nodes for name in node.output}
        read = [*dict.fromkeys(name for node in nodes for name in _read(node) if name)]
        constants = [self._given[name] for name in read if name in self._given]
        names = [
            name
            for name in read
            if name not in results and name not in self._constants and name not in self._given
        ]
        graph = helper.make_graph(
            [*constants, *nodes],
            "reduced",
            [self._value(name) for name in names],
            [self._value(name) for name in outputs],
            [self._constants[name] for name in read if name in self._constants],
        )
        model = helper.make_model(
            graph,
            opset_imports=self.model.opset_import,
            ir_version=self.model.ir_version,
            functions=self.model.functions,
        )
        inputs = {
            name: np.stack([values[name] for values in self._rows]).astype(self._dtype(name))
            for name in names
            if len({values[name].shape for values in self._rows}) == 1
        }
        cases = tuple(f"row {index}" for index in range(len(self._rows)))
        return model, SizedRows(inputs, cases)

    def ancestors(self, last: int, first: int = 0) -> list[int]:
        """Returns the numbers of the nodes from `first` on that a node depends on, and its own."""
        wanted, chosen = set(_read(self.nodes[last])), [last]
        for index in range(last - 1, first - 1, -1):
            if wanted.intersection(self.nodes[index].output):
                chosen.append(index)
                wanted.update(_read(self.nodes[index]))
        return chosen[::-1]

    def outputs(self, index: int) -> list[str]:
        """Returns the tensors that a node gives."""
        return [n for n in self.nodes[index].output if n in self._rows[0]]

    def _value(self, name: str) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(self._dtype(name))
        return helper.make_tensor_value_info(name, kind, self._rows[0][name].shape)

    def _dtype(self, name: str) -> Any:
        """Returns the numpy dtype of a value in the graph, which is run with halves in float32."""
        if name in self._halves:
            return helper.tensor_dtype_to_np_dtype(self._halves[name])
        return self._rows[0][name].dtype


def _read(node: onnx.NodeProto) -> list[str]:
    """Returns what a node reads from outside, its subgraphs included."""
    names = list(node.input)
    for entry in node.attribute:
        for graph in [entry.g] if entry.HasField("g") else entry.graphs:
            for known in graphs_of(graph):
                results = {name for inner in known.node for name in inner.output}
                results |= {value.name for value in known.input}
                results |= {tensor.name for tensor in known.initializer}
                read = [name for inner in known.node for name in inner.input]
                read += [value.name for value in known.output]
                names += [name for name in read if name not in results]
    return names


def reduce(
    model: onnx.ModelProto,
    sizes: Sequence[SizedRows],
    engine: str,
    *,
    batched: bool,
    device: str = "auto",
) -> Reduction:
    """Returns the smallest part of a graph, as far as it is found, that fails as the graph does.

    The outputs are cut first, by bisection over the nodes, then the inputs, then single nodes.

    Args:
        sizes: Inputs of the graph, by size; the first rows on which it fails are taken.
        batched: The first axis is the batch; otherwise a row is one run.

    Raises:
        DeployError: The engine does not fail on the graph.
        NotAvailableError: The engine cannot be built here, or the device does not exist here.
    """
    if engines.get(engine).available().run:
        choose_device(engines.get(engine), device)
    for rows in itertools.chain.from_iterable(map(_few, sizes)):
        whole = failure(*_whole(model, rows, batched=batched), engine, device)
        if whole is not None:
            break
    else:
        runs = engines.get(engine).available().run
        raise DeployError(
            f"{engine} does not fail on this graph: it builds"
            f"{', runs and matches' if runs else ', and it cannot be run here'}",
            "give the inputs on which it fails by --inputs FILE.npz"
            if runs
            else "`assay doctor` says why",
        )
    parts = _Parts(model, rows, batched=batched)
    console.say(f"reduce: {engine} {whole.kind} on the whole graph, of {len(parts.nodes)} nodes")

    def fails(chosen: Sequence[int], last: int) -> bool:
        names = parts.outputs(last)
        if not names:
            return False
        try:
            known = failure(*parts.part(chosen, names), engine, device)
        except (DeployError, KeyError):  # a part that cannot be computed shows nothing
            return False
        return known is not None and known.kind == whole.kind

    last = _first(len(parts.nodes), lambda index: fails(parts.ancestors(index), index))
    first = last - _first(last + 1, lambda back: fails(parts.ancestors(last, last - back), last))
    chosen = parts.ancestors(last, first)
    for index in itertools.islice(list(chosen[:-1]), _REMOVALS):
        fewer = [other for other in chosen if other != index]
        if fails(fewer, last):
            chosen = fewer
    part, inputs = parts.part(chosen, parts.outputs(last))
    known = failure(part, inputs, engine, device)
    if known is None or known.kind != whole.kind:
        raise DeployError(
            f"no part of the graph fails as the whole does: {whole.message}",
            "send the whole graph",
        )
    first_row = {name: array[0] for name, array in inputs.inputs.items()}
    return Reduction(part, first_row, known, (len(chosen), len(parts.nodes)))


def _first(count: int, fails: Callable[[int], bool]) -> int:
    """Returns the least number below `count` that fails, if failing goes on once it has begun."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        if fails(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _few(rows: SizedRows) -> Iterator[SizedRows]:
    """Yields rows of one size, a few at a time."""
    for start in range(0, len(rows.cases), _ROWS):
        yield rows.take(range(start, min(start + _ROWS, len(rows.cases))))


def _whole(
    model: onnx.ModelProto, rows: SizedRows, *, batched: bool
) -> tuple[onnx.ModelProto, SizedRows]:
    """Returns the graph and rows, each of which is one run."""
    inputs = {
        value.name: rows.inputs[value.name][:, np.newaxis] if batched else rows.inputs[value.name]
        for value in inputs_of(model.graph)
    }
    return model, SizedRows(inputs, rows.cases)


def failure(model: onnx.ModelProto, rows: SizedRows, engine: str, device: str) -> Failure | None:
    """Returns how an engine fails on a graph; None if it does not.

    Args:
        rows: Each is one run of the graph.
    """
    with temporary.folder() as folder:
        source, built = folder / GRAPH.name, folder / "engine"
        onnx_files.write(model, source)
        try:
            worker.call(f"building {engine}", _build, engine, source, built, _sizes(model, rows))
            if not engines.get(engine).available().run:
                return None
            measured = graph_reference.measure(
                model, model, rows, batched=False, noise_runs=limits.NOISE_RUNS
            )
            precision = half_graph.precision_of(model)
            return worker.call(
                f"running {engine}", _judge, engine, built, measured, precision, device
            )
        except CrashedError as error:
            return Failure("crashed", error.message)
        except (NotAvailableError, _RefusedError) as error:
            # An engine that can be built here may lack a kernel for a node.
            if not engines.get(engine).available().build:
                raise
            message = error.message
            for path in (str(source), str(built), source.name):
                message = message.replace(path, "the graph")
            return Failure("refused", message)


class _RefusedError(DeployError):
    """An engine cannot be built."""


def _sizes(model: onnx.ModelProto, rows: SizedRows) -> dict[str, list[list[int] | None]]:
    """Returns the sizes of inputs with other dynamic axes than the first; see `BuildOptions`."""
    return {
        value.name: [None, *([size] * 3 for size in rows.inputs[value.name].shape[2:])]
        for value in inputs_of(model.graph)
        if None in spec_of(value).shape[1:]
    }


def _build(
    engine: str, source: Path, built: Path, sizes: Mapping[str, list[list[int] | None]]
) -> None:
    try:
        engines.get(engine).build(source, built, BuildOptions(1, 1, 1, sizes=sizes))
    except NotAvailableError:
        raise
    except DeployError as error:
        raise _RefusedError(error.message) from error


def _judge(
    engine: str, built: Path, measured: graph_reference.Measured, precision: str, device: str
) -> Failure | None:
    reference = measured.as_reference(precision, 0.0, batched=False)
    try:
        options = OpenOptions("cpu" if device == "auto" else device, threads=1)
        with closing(engines.get(engine).open(built, options)) as session:
            known = verdict.judge(engine, session, reference)
    except NotAvailableError:
        raise
    except DeployError as error:
        return Failure("failed", error.message)
    return Failure("mismatch", known.reason) if known.status == "mismatch" else None

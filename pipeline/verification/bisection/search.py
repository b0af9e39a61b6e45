"""Bisection: finds the first value of a graph that differs from the model's, and who is at fault.

torch.export's names of values survive in the ONNX graph. So each value, as an engine computes it,
can be compared with what the program computes in float64 from the engine's own earlier values. The
fault of a node then shows at that node only, and not again at all that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines.contract import Array
from engines.errors import DeployError
from exporters import onnx_files, trace_errors
from exporters.onnx_nodes import spec_of
from exporters.program import read_program
from pipeline.golden import noise
from pipeline.golden.file import Golden
from pipeline.verification import limits, noise_floor, verdict
from pipeline.verification.bisection import opinion, translation
from pipeline.verification.bisection.walk import walk
from pipeline.verification.bisection.windows import Prober, Windows
from pipeline.verification.weight_audit import audit_model

# Rows to compare: a fault that shows on a test set shows on some of these.
_ROWS = 8


@dataclass(frozen=True)
class Step:
    """One value of the graph, compared with the model's.

    Attributes:
        value: Its name in the graph.
        node: The name of the node that computes it.
        operator: The operator of that node.
        module: Where it comes from in the PyTorch model, as `network.layer1: Conv2d`.
        error: Root mean square of its difference to the float64 run of the whole model, as a part
            of that run's: the error accumulated so far.
        ratio: The error that the node itself adds, as a part of the allowed one: its root mean
            square over the rows in units of the noise floor over `limits.MAX_RMS_IN_FLOORS`, or
            its largest over `limits.MAX_ERROR_IN_FLOORS`, whichever is more. Above 1 is a fault.
        fault: How it differs from the model's, in words; "" if it does not.
    """

    value: str
    node: str
    operator: str
    module: str
    error: float
    ratio: float
    fault: str = ""


@dataclass(frozen=True)
class Bisection:
    """The comparison of a graph's values with the program's.

    Attributes:
        steps: One for each value, in the order of the program.
        opinion: Who is at fault at the first step with a fault; "" without such a step.
        unmatched: Nodes without a value that the program has by name, such as folded ones.
        translation: Where torch's translation of the program changed the model; "" if nowhere.
    """

    steps: tuple[Step, ...]
    opinion: str = ""
    unmatched: tuple[str, ...] = ()
    translation: str = ""

    @property
    def first(self) -> Step | None:
        """The first step with a fault; None without one."""
        return next((step for step in self.steps if step.fault), None)


def bisect(program: Path, graph: Path, golden: Golden, prober: Prober | None = None) -> Bisection:
    """Compares all values of a graph, as it is or as an engine computes it, with the program's.

    Memory is bounded: it holds the weights, the program's own values for a few rows, and some
    hundred MiB of the graph's values, however many there are.

    Args:
        program: The torch.export program of the model.
        graph: An ONNX graph that was made from it.
        prober: What computes the graph; None means the graph as it is.

    Raises:
        UsageError: The engine has no graph to follow.
        NotAvailableError: The engine cannot be run here.
        DeployError: A file cannot be read, or no value of the graph has a name of the program's.
    """
    prober = prober or Prober()
    prober.check()
    loaded = read_program(program)
    decomposed = _decomposed(loaded)
    model = onnx_files.read(graph)
    rows = _rows(golden)
    feeds = {name: np.ascontiguousarray(array[rows]) for name, array in golden.inputs.items()}
    outputs = decomposed.graph_signature.user_outputs
    if len(outputs) != len(golden.native):
        raise DeployError(
            f"the program has {len(outputs)} outputs, but the golden file has {len(golden.native)}",
            "give the golden file that was exported with the program",
        )
    names = dict(zip(outputs, golden.native, strict=True))
    mistranslated = translation.fault(loaded, decomposed, feeds, golden, rows)
    makers = {name: node for node in model.graph.node for name in node.output if name}
    nodes = [
        node
        for node in decomposed.graph.nodes
        if node.op == "call_function"
        and names.get(node.name, node.name) in makers
        and isinstance(node.meta.get("val"), torch.Tensor)
        and not node.meta["val"].is_complex()  # ONNX has pairs of numbers instead
    ]
    if not nodes:
        raise DeployError(
            f"no value of {graph} has the name of one of the model's",
            "bisection needs a graph that torch.onnx exported",
        )
    known = {node.name: names.get(node.name, node.name) for node in nodes}
    windows = Windows(prober, model, feeds, [(known[n.name], _bytes(n, len(rows))) for n in nodes])
    steps: list[Step] = []
    wanted: Array | None = None  # the expected value at the first fault
    for node, values in walk(decomposed, feeds, known, windows):
        maker = makers[known[node.name]]
        measured = _judge(*values, _summed(node), golden.precision)
        where = _module(node)
        if wanted is None and measured[2]:
            wanted = values[2]
        steps.append(
            Step(known[node.name], maker.name or node.name, maker.op_type, where, *measured)
        )
    unmatched = tuple(
        node.name or node.output[0]
        for node in model.graph.node
        if not {*node.output} & {*known.values()}
    )
    bisection = Bisection(tuple(steps), unmatched=unmatched, translation=mistranslated)
    first = bisection.first
    if first is None or wanted is None:
        return bisection
    return replace(
        bisection,
        opinion=opinion.of_value(prober, model, first.value, {*known.values()}, feeds, wanted),
    )


def other_faults(graph: Path, golden: Golden, program: Path | None = None) -> str:
    """Returns what is wrong with a graph's weights and signature, which values may not show.

    Args:
        program: The exported program, for a graph that may be another tool's.
    """
    model = onnx_files.read(graph)
    follow = None if program is None else lambda: program
    inputs, outputs = (
        tuple(map(spec_of, values)) for values in (model.graph.input, model.graph.output)
    )
    faults = [audit_model(model, golden.weights, graph, follow).fault]
    faults += [f"its {fault}" for fault in verdict.signature_faults(inputs, outputs, golden)]
    return "; ".join(fault for fault in faults if fault)


def takes_other_inputs(graph: Path, golden: Golden) -> bool:
    """Whether a graph's inputs differ from the golden file's."""
    model = onnx_files.read(graph, data=False)
    return {*map(spec_of, model.graph.input)} != {*golden.input_specs}


def _rows(golden: Golden) -> Array:
    """Returns the indices of the rows to compare: up to half of them edge cases."""
    edges = np.flatnonzero(~golden.common)[: _ROWS // 2]
    common = np.flatnonzero(golden.common)
    return np.concatenate([common[: _ROWS - len(edges)], edges])


def _decomposed(program: Any) -> Any:
    """Returns the program in the operators that the exporter translates, with its value names."""
    with trace_errors.recorded() as report:
        try:
            translated = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
        except Exception as error:  # the exporter's errors share no public type
            raise trace_errors.untranslated(error, report, program) from error
    if translated is None:
        raise DeployError("torch.onnx cannot translate the program", "export the model again")
    return translated.exported_program


def _bytes(node: Any, rows: int) -> int:
    """Returns roughly how many bytes a value takes."""
    count = rows
    for axis in node.meta["val"].shape[1:]:
        count *= axis if isinstance(axis, int) else 1
    return count * int(node.meta["val"].element_size())


def _summed(node: Any) -> float:
    """Estimates how many elements of an input a node adds up to one of its output, as in a mean."""
    largest = max((_bytes(n, 1) for n in node.all_input_nodes if _tensor(n)), default=1)
    return max(1.0, largest / max(1, _bytes(node, 1)))


def _tensor(node: Any) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor) and node.op == "call_function"


def _module(node: Any) -> str:
    """Returns where a value comes from in the PyTorch model."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    name = (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]
    return f"{path}: {name}" if path else name


def _judge(
    value: Array,
    exact: Array,
    local: Array,
    others: Sequence[Array],
    summed: float,
    precision: str,
) -> tuple[float, float, str]:
    """Returns error, ratio and fault of a step; see `Step`.

    Args:
        value: The engine's value, `[rows, ...]`.
        exact: The value of the float64 run.
        local: The float64 value computed from the engine's earlier values.
        others: PyTorch's values computed from these at the precision.
        summed: Elements added up to one: doing so one by one loses more than in pairs.
    """
    if value.shape != exact.shape:
        fault = f"its shape is {list(value.shape)} where {list(exact.shape)} was expected"
        return 0.0, 0.0, fault
    if not np.isfinite(value.astype(np.float64)).all():
        return 0.0, 0.0, "it has NaN or Inf"
    size = float(np.sqrt(np.mean(np.square(exact.astype(np.float64))))) or 1.0
    grown = float(np.sqrt(np.mean(np.square(noise.difference(value, exact))))) / size
    floor = noise_floor.floor(local, noise.measure(local, others), precision, least=summed**0.5)
    error = np.abs(noise.difference(value, local))
    judged = floor.comparable
    if not judged.any():
        return grown, 0.0, ""
    rms = noise_floor.in_floors(np.sqrt(np.mean(np.square(error), axis=1)), floor.rms)[judged]
    largest = noise_floor.in_floors(error.max(axis=1), floor.max)[judged].max()
    ratio = max(
        float(np.sqrt(np.mean(np.square(rms)))) / limits.MAX_RMS_IN_FLOORS,
        float(largest) / limits.MAX_ERROR_IN_FLOORS,
    )
    fault = f"its error is {ratio:.1f} times what rounding explains" if ratio > 1 else ""
    if ratio * limits.MAX_ERROR_IN_FLOORS >= noise_floor.UNBOUNDED:
        fault = "it differs where rounding changes nothing"
    return grown, ratio, fault

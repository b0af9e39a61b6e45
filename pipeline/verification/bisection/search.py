"""Bisection: finds the first value of a graph that differs from the model's, and who is at fault.

torch.export's names of values survive in the ONNX graph. So each value, as an engine computes it,
can be compared with what the program computes in float64 from the engine's own earlier values. The
fault of a node then shows at that node only, and not again at all that follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engines.contract import Array
from engines.errors import DeployError
from exporters import onnx_files, trace_errors
from exporters.onnx_graph import spec_of
from pipeline.golden import noise, rounding
from pipeline.golden.file import Golden
from pipeline.golden.reference import in_float64
from pipeline.verification import limits, noise_floor, verdict
from pipeline.verification.bisection import opinion
from pipeline.verification.bisection.windows import Prober, Windows
from pipeline.verification.weight_audit import audit

# Rows to compare: a fault that shows on a test set shows on some of these.
_ROWS = 8
_MORE_RUNS = 3  # with random rounding, to measure the noise
# Operators that assert dtypes, which differ in float64.
_CHECKS = ("aten._assert", "sym_constrain")


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
    """

    steps: tuple[Step, ...]
    opinion: str = ""
    unmatched: tuple[str, ...] = ()

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
    decomposed = _decomposed(program)
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
    for node, values in _walk(decomposed, feeds, known, windows):
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
    bisection = Bisection(tuple(steps), unmatched=unmatched)
    first = bisection.first
    if first is None or wanted is None:
        return bisection
    return replace(
        bisection,
        opinion=opinion.of_node(prober, model, makers[first.value], first.value, feeds, wanted),
    )


def other_faults(graph: Path, golden: Golden) -> str:
    """Returns what is wrong with a graph's weights and signature, which values may not show."""
    model = onnx_files.read(graph, data=False)
    inputs, outputs = (
        tuple(map(spec_of, values)) for values in (model.graph.input, model.graph.output)
    )
    faults = [audit(graph, golden.weights).fault]
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


def _decomposed(path: Path) -> Any:
    """Returns the program in the operators that the exporter translates, with its value names."""
    try:
        with path.open("rb") as file:
            program = torch.export.load(file)
    except Exception as error:  # torch.export.load documents no exception types
        raise DeployError(
            f"torch.export.load does not accept {path}: {error}", "export the model again"
        ) from error
    with trace_errors.recorded() as report:
        try:
            translated = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
        except Exception as error:  # the exporter's errors share no public type
            raise trace_errors.untranslated(error, report, program) from error
    if translated is None:
        raise DeployError(f"torch.onnx cannot translate {path}", "export the model again")
    return translated.exported_program


@dataclass
class _Run:
    """One way of computing the program, node by node.

    Attributes:
        context: Entered around each node.
        convert: Returns a weight as this run uses it: in its dtype, randomly rounded or not.
        values: By node, the values that later nodes need.
    """

    context: Callable[[], AbstractContextManager[Any]]
    convert: Callable[[torch.Tensor], torch.Tensor]
    values: dict[Any, Any] = field(default_factory=dict)


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _to_float64(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


def _moved(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    random = torch.Generator().manual_seed(seed)

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        copied = tensor.clone()
        if tensor.is_floating_point():
            rounding.move(copied, random)
        return copied

    return convert


def _walk(
    program: Any, feeds: Mapping[str, Array], known: Mapping[str, str], engine: Windows
) -> Iterator[tuple[Any, tuple[Array, Array, Array, list[Array]]]]:
    """Runs the program in several ways at once, node by node.

    Yields:
        Each node whose value the engine computes, with four things: the engine's value; the
        float64 value of the whole model; the float64 value computed from the engine's earlier
        values; and PyTorch's values from these at the precision, each rounded differently.
    """
    runs = [_Run(in_float64, _to_float64) for _ in range(2)]
    for seed in range(1 + _MORE_RUNS):
        convert = _moved(seed) if seed else _as_it_is
        runs.append(_Run(lambda seed=seed: rounding.approximate(seed), convert))  # type: ignore[misc]  # a default binds it
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    inputs = iter(feeds.values())
    users = {node: len(node.users) for node in program.graph.nodes}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            weight = node.name in names
            tensor = held[names[node.name]] if weight else torch.from_numpy(next(inputs))
            for run in runs:
                run.values[node] = (run.convert if weight else _start(run))(tensor.detach())
        if node.op != "call_function":
            continue
        checks = any(word in str(node.target) for word in _CHECKS)
        for run in runs:
            args = torch.fx.node.map_arg((node.args, node.kwargs), run.values.__getitem__)
            with torch.inference_mode(), run.context():
                run.values[node] = None if checks else node.target(*args[0], **args[1])
        if node.name in known:
            value = engine[known[node.name]]
            values = [_to_array(run.values[node]) for run in runs]
            yield node, (value, values[0], values[1], values[2:])
            if value.shape == values[0].shape:
                for run in runs[1:]:
                    kind = run.values[node].dtype
                    exact = value.astype(np.float64) if value.dtype.kind == "f" else value
                    run.values[node] = torch.from_numpy(exact).to(kind)
        for before in node.all_input_nodes:
            users[before] -= 1
            if not users[before]:
                for run in runs:
                    del run.values[before]


def _start(run: _Run) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns how a run converts the model's inputs, which are exact and so never moved."""
    return _to_float64 if run.convert is _to_float64 else _as_it_is


def _to_array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach()
    array: Array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    return array


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
    rms = verdict.in_floors(np.sqrt(np.mean(np.square(error), axis=1)), floor.rms)[judged]
    largest = verdict.in_floors(error.max(axis=1), floor.max)[judged].max()
    ratio = max(
        float(np.sqrt(np.mean(np.square(rms)))) / limits.MAX_RMS_IN_FLOORS,
        float(largest) / limits.MAX_ERROR_IN_FLOORS,
    )
    fault = f"its error is {ratio:.1f} times what rounding explains" if ratio > 1 else ""
    return grown, ratio, fault

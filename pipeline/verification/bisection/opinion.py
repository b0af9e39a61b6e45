"""A third opinion on a faulty value: ONNX's own reference implementation."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx

from engines.contract import Array
from exporters import typed_graph
from pipeline.verification import engine_proof
from pipeline.verification.bisection.windows import Prober

# The reference confirms the runtime if its value is at least this many times nearer to the
# runtime's value than the model's value is.
_TIMES_NEARER = 4


def of_value(
    prober: Prober,
    model: onnx.ModelProto,
    value: str,
    known: Collection[str],
    feeds: Mapping[str, Array],
    wanted: Array,
) -> str:
    """Returns whether the graph or the runtime is at fault at a value, by ONNX's reference.

    An operator of the model may be several nodes of the graph. The reference computes all of them,
    from the last values before them that were compared: those are the model's, whoever computed
    them. If it confirms the runtime's value, the graph is at fault.

    Args:
        value: The value that differs from the model's.
        known: Names of the values that were compared.
        feeds: The inputs of the graph, by name.
        wanted: The model's value for it, `[rows, …]`.
    """
    from onnx.reference import ReferenceEvaluator

    typed = typed_graph.as_typed(model) if typed_graph.can_round(model) else model
    nodes, taken = _nodes_behind(typed, value, {*known, *feeds} - {value})
    inner = [name for name in taken if name not in feeds]
    computed = prober.values(model, feeds, [*dict.fromkeys([*inner, value])])
    node_inputs = {name: feeds[name] if name in feeds else computed[name] for name in taken}
    read = {name for node in nodes for name in node.input}
    alone = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes,
            "operator",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None
                )
                for name, array in node_inputs.items()
            ],
            [onnx.ValueInfoProto(name=value)],
            [tensor for tensor in typed.graph.initializer if tensor.name in read],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    try:
        with np.errstate(all="ignore"):  # it may overflow as the runtime does
            (output,) = ReferenceEvaluator(alone).run([value], node_inputs)
    except Exception as error:  # it lacks operators, and documents no exception types
        return f"ONNX's reference cannot compute it: {error}"
    by_reference, runtimes = (
        np.asarray(output).astype(np.float64),
        computed[value].astype(np.float64),
    )
    near, far = (_distance(other.astype(np.float64), runtimes) for other in (by_reference, wanted))
    if near <= far / _TIMES_NEARER and np.isfinite(near):
        return "ONNX's reference gives the same value: the graph itself differs from the model"
    who = engine_proof.runner(prober.subject)
    return f"ONNX's reference gives another value: {who} does not compute what the graph says"


def _nodes_behind(
    model: onnx.ModelProto, value: str, known: Collection[str]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Returns the nodes between known values and a value, in their order, and what they read."""
    makers = {name: node for node in model.graph.node for name in node.output if name}
    constants = {tensor.name for tensor in model.graph.initializer}
    needed: set[str] = set()
    taken: list[str] = []
    todo = [value]
    while todo:
        node = makers[todo.pop()]
        if node.output[0] in needed:
            continue
        needed.add(node.output[0])
        for name in node.input:
            if name in known:
                taken.append(name)
            elif name and name not in constants:
                todo.append(name)
    nodes = [node for node in model.graph.node if node.output[0] in needed]
    return nodes, [*dict.fromkeys(taken)]


def _distance(one: Array, other: Array) -> float:
    """Returns the largest difference; infinite if shapes or positions of NaN and Inf differ."""
    if one.shape != other.shape or (np.isfinite(one) != np.isfinite(other)).any():
        return float("inf")
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        return float(np.nan_to_num(np.abs(one - other), nan=0.0).max(initial=0.0))

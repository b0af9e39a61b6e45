"""A third opinion on a faulty node: ONNX's own reference implementation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from engines.contract import Array
from pipeline.verification import engine_proof
from pipeline.verification.bisection.windows import Prober

# The reference confirms the runtime if its value is at least this many times nearer to the
# runtime's value than the model's value is.
_TIMES_NEARER = 4


def of_node(
    prober: Prober,
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    value: str,
    feeds: Mapping[str, Array],
    wanted: Array,
) -> str:
    """Returns whether the graph or the runtime is at fault at a node, by ONNX's reference.

    The reference computes this node only, from the inputs that it has in the runtime, so this is
    fast. If it confirms the runtime's value, the graph is at fault.

    Args:
        value: The output of the node that differs from the model's.
        feeds: The inputs of the graph, by name.
        wanted: The model's value for it, `[rows, …]`.
    """
    from onnx.reference import ReferenceEvaluator

    constants = {tensor.name for tensor in model.graph.initializer} | {*feeds}
    taken = [name for name in node.input if name and name not in constants]
    computed = prober.values(model, feeds, [*dict.fromkeys([*taken, value])])
    node_inputs = {name: computed[name] for name in taken} | {
        k: feeds[k] for k in node.input if k in feeds
    }
    alone = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node],
            "node",
            [
                onnx.helper.make_tensor_value_info(
                    name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), None
                )
                for name, array in node_inputs.items()
            ],
            [onnx.ValueInfoProto(name=value)],
            [tensor for tensor in model.graph.initializer if tensor.name in node.input],
        ),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    try:
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


def _distance(one: Array, other: Array) -> float:
    """Returns the largest difference; infinite if shapes or positions of NaN and Inf differ."""
    if one.shape != other.shape or (np.isfinite(one) != np.isfinite(other)).any():
        return float("inf")
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        return float(np.nan_to_num(np.abs(one - other), nan=0.0).max(initial=0.0))

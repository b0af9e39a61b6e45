"""A third opinion: ONNX's own reference implementation, on the one node that is in question."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from engines.contract import Array
from pipeline.verification import engine_proof
from pipeline.verification.bisection.windows import Prober

# What stands by a value is at least this much nearer to it than what does not.
_NEARER = 4


def of_node(
    prober: Prober,
    model: onnx.ModelProto,
    node: onnx.NodeProto,
    value: str,
    feeds: Mapping[str, Array],
    wanted: Array,
) -> str:
    """Returns what ONNX's own reference says of a node: whose fault its value is.

    The node alone is computed from what the runtime gave it, so this takes no time. It stands
    by the runtime if it is much nearer to its value than to the model's.
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
    if near <= far / _NEARER and np.isfinite(near):
        return "ONNX's reference gives the same: the graph says something else than the model"
    who = engine_proof.runner(prober.subject)
    return f"ONNX's reference gives something else: {who} does not do what the graph says"


def _distance(one: Array, other: Array) -> float:
    """Returns the largest difference of two arrays; infinite if one has numbers the other lacks."""
    if one.shape != other.shape or (np.isfinite(one) != np.isfinite(other)).any():
        return float("inf")
    with np.errstate(invalid="ignore"):  # the difference of two infinities
        return float(np.nan_to_num(np.abs(one - other), nan=0.0).max(initial=0.0))

"""Finds the tensors of a quantized graph that carry the weights of the graph it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from engines.contract import Array
from exporters.onnx_nodes import attribute


def quantized(carried: Mapping[str, Array], graph: onnx.ModelProto) -> dict[str, Array]:
    """Returns the tensor that carries each parameter in a quantized graph, and all scales.

    Args:
        carried: By the parameter's name, the tensor that carries it in the float graph.
        graph: The quantized graph made from that one.

    Returns:
        By the parameter's name, the quantized tensor whose values lie within half a step of it,
        or the parameter itself if none is that close; by their own names, all scales and zero
        points.
    """
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.graph.initializer}
    rounded: list[tuple[Array, Array]] = []
    scales: dict[str, Array] = {}
    for node in graph.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scales |= {name: tensors[name] for name in node.input[1:] if name in tensors}
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            axis = attribute(node, "axis", 1)
            integers = tensors[node.input[0]]
            scale = tensors[node.input[1]].astype(np.float64)
            shape = [1] * integers.ndim
            if scale.ndim:
                shape[axis] = -1
            step = np.broadcast_to(scale.reshape(shape), integers.shape)
            rounded.append((integers, step))
    return {name: _rounded(array, rounded) for name, array in carried.items()} | scales


def _rounded(array: Array, candidates: Sequence[tuple[Array, Array]]) -> Array:
    for integers, step in candidates:
        if integers.shape == array.shape:
            values = integers.astype(np.float64)
            error = np.abs(values * step - array.astype(np.float64))
            if (error <= step * _half_steps(integers) * (1 + 1e-5)).all():
                return integers
    return array


def _half_steps(stored: Array) -> Array:
    """Returns the largest rounding error of each stored value, in units of its scale."""
    if stored.dtype.kind in "iu":
        return np.full(stored.shape, 0.5)
    # E4M3 has three bits of mantissa, and its smallest number is 2^-9.
    return np.asarray(np.maximum(np.abs(stored.astype(np.float64)) * 2.0**-4, 2.0**-10))

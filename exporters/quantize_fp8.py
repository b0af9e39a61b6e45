"""fp8 (E4M3): convolutions and matrix products of inputs that are quantized and dequantized.

ONNX Runtime's quantizer writes only integer types, so this is our own. For fp8, TensorRT takes one
scale for each activation, and one for each output channel of a weight. The largest finite value of
E4M3 is 448: Micikevicius and others, FP8 Formats for Deep Learning (2022), table 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from engines.contract import Feeds
from engines.errors import DeployError
from exporters.onnx_nodes import attribute, remove_unread_constants
from exporters.quantize import Quantized, best_method, ranges_of

_LARGEST_E4M3 = 448.0
# Fewer than for int8: clipping gains less here, since the steps of a float grow with its values.
METHODS = ("minmax", "percentile")
# Convolutions of up to this many channels (those of an image) stay in float, and so do grouped
# ones: they take the least time, their errors grow in all later layers, and TensorRT has no fp8
# kernels for some of them.
_IMAGE_CHANNELS = 4


def quantize(
    graph: onnx.ModelProto,
    rows: Feeds,
    judge: Callable[[onnx.ModelProto], tuple[float, ...]],
) -> Quantized:
    """Quantizes a float32 graph; arguments and errors as in `exporters.quantize.quantize`."""
    graphs, scores = {}, {}
    failed: dict[str, str] = {}
    for method, ranges in ranges_of(graph, rows, METHODS, failed):
        graphs[method] = with_ranges(graph, ranges)
        scores[method] = judge(graphs[method])
    best = best_method(scores, failed)
    return Quantized(graphs[best], None, best, scores, failed, {})


def with_ranges(
    graph: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]
) -> onnx.ModelProto:
    """Returns a float32 graph with its convolutions and matrix products in fp8.

    Args:
        graph: With batch norms folded, of opset 19 or later.
        ranges: The least and the largest value of tensors, by name. Tensors without a finite
            range stay in float, and so do the nodes that read them.

    Raises:
        DeployError: No node can be computed in fp8.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    finite = {name: limits for name, limits in ranges.items() if np.isfinite(limits).all()}
    quantizer = _Quantizer(model.graph, finite)
    for node in list(model.graph.node):
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            quantizer.quantize_inputs(node)
    if not any(node.op_type == "QuantizeLinear" for node in quantizer.finish()):
        raise DeployError(
            "no convolution or matrix product of this model can be computed in fp8",
            "export it in another precision",
        )
    return model


class _Quantizer:
    """Replaces the inputs of nodes by quantized and dequantized ones."""

    def __init__(self, graph: onnx.GraphProto, ranges: Mapping[str, tuple[float, float]]) -> None:
        self._graph = graph
        self._ranges = ranges
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._activations: dict[str, str] = {}
        self._weights: dict[tuple[str, int], str] = {}
        self._new: dict[str, list[onnx.NodeProto]] = {}

    def quantize_inputs(self, node: onnx.NodeProto) -> None:
        """Quantizes both factors of a node, or neither."""
        first, second = node.input[:2]
        if node.op_type == "Conv" and second in self._constants:
            weight = self._constants[second]
            if (
                attribute(node, "group", 1) > 1
                or weight.dims[1] <= _IMAGE_CHANNELS < weight.dims[0]
            ):
                return
        known = [name in self._constants or name in self._ranges for name in (first, second)]
        floats = all(
            self._constants[name].data_type == onnx.TensorProto.FLOAT
            for name in (first, second)
            if name in self._constants
        )
        if not (all(known) and floats) or first in self._constants:
            return
        node.input[0] = self._activation(first)
        if second in self._constants:
            node.input[1] = self._weight(second, _channel_axis(node, self._constants[second]))
        else:
            node.input[1] = self._activation(second)

    def finish(self) -> list[onnx.NodeProto]:
        """Inserts the new nodes behind those whose values they read, and removes unread constants.

        Returns:
            All nodes of the graph.
        """
        nodes: list[onnx.NodeProto] = []
        for value in self._graph.input:
            nodes += self._new.pop(value.name, [])
        nodes += self._new.pop("", [])  # those that read constants
        for node in self._graph.node:
            nodes.append(node)
            for name in node.output:
                nodes += self._new.pop(name, [])
        copies = [onnx.NodeProto() for _ in nodes]
        for copy, node in zip(copies, nodes, strict=True):
            copy.CopyFrom(node)
        del self._graph.node[:]
        self._graph.node.extend(copies)
        remove_unread_constants(self._graph)
        return copies

    def _activation(self, name: str) -> str:
        if name not in self._activations:
            scale = np.asarray(_scale(max(map(abs, self._ranges[name]))), np.float32)
            scale_name, zero = self._constant(f"{name}_scale", scale), self._zero(name, ())
            quantized, back = f"{name}_fp8", f"{name}_dequantized"
            self._new[name] = [
                helper.make_node(
                    "QuantizeLinear", [name, scale_name, zero], [quantized], f"{name}_quantize"
                ),
                helper.make_node(
                    "DequantizeLinear", [quantized, scale_name, zero], [back], f"{back}_node"
                ),
            ]
            self._activations[name] = back
        return self._activations[name]

    def _weight(self, name: str, axis: int) -> str:
        if (name, axis) not in self._weights:
            array = numpy_helper.to_array(self._constants[name])
            other = tuple(n for n in range(array.ndim) if n != axis)
            scales = np.array([_scale(value) for value in np.abs(array).max(other)], np.float32)
            shape = [1] * array.ndim
            shape[axis] = -1
            prefix = (
                name if not any(known == name for known, _ in self._weights) else f"{name}_{axis}"
            )
            back = f"{prefix}_dequantized"
            quantized = self._constant(f"{prefix}_fp8", to_fp8(array / scales.reshape(shape)))
            inputs = [
                quantized,
                self._constant(f"{prefix}_scale", scales),
                self._zero(prefix, scales.shape),
            ]
            self._new.setdefault("", []).append(
                helper.make_node("DequantizeLinear", inputs, [back], f"{back}_node", axis=axis)
            )
            self._weights[name, axis] = back
        return self._weights[name, axis]

    def _zero(self, name: str, shape: Iterable[int]) -> str:
        return self._constant(f"{name}_zero_point", to_fp8(np.zeros(tuple(shape), np.float32)))

    def _constant(self, name: str, array: NDArray[np.float32] | onnx.TensorProto) -> str:
        tensor = array
        if not isinstance(tensor, onnx.TensorProto):
            tensor = numpy_helper.from_array(tensor)
        tensor.name = name
        self._graph.initializer.append(tensor)
        return name


def to_fp8(array: NDArray[np.floating[Any]]) -> onnx.TensorProto:
    """Returns a tensor of E4M3 values, rounded to nearest, ties to even, and saturated."""
    rounded = np.clip(np.asarray(array, np.float32), -_LARGEST_E4M3, _LARGEST_E4M3).astype(
        ml_dtypes.float8_e4m3fn
    )
    return helper.make_tensor(
        "", onnx.TensorProto.FLOAT8E4M3FN, array.shape, rounded.tobytes(), raw=True
    )


def _scale(largest: float) -> float:
    """Returns the scale by which to divide values, so that `largest` becomes 448."""
    return largest / _LARGEST_E4M3 if largest > 0 else 1.0


def _channel_axis(node: onnx.NodeProto, weight: onnx.TensorProto) -> int:
    """Returns the output channels' axis of a node's weight."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return len(weight.dims) - 1

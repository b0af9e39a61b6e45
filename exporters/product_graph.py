"""Graphs of large convolutions and matrix products, to measure how fast a machine multiplies."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters import PRECISIONS

# Rows, and columns, of the matrix. A weight fits into the cache of one core, and all of it into the
# caches of a server's CPU, so that memory does not bound the product.
_ROWS, _COLUMNS = 1024, 512
# Channels in and out, and height and width of the input, of a convolution of 3 x 3. It has no
# padding, since kernels that multiply the padding too would lower the peak.
_CHANNELS, _SIDE, _KERNEL = 128, 34, 3
# Products in a row, so that converting the input to the kernels' layout takes a small part.
_PRODUCTS, _CONVOLUTIONS = 2, 4
_OPSET, _IR_VERSION = 21, 10
INPUT, _OUTPUT = "x", "y"
# The scale of int8 values and its zero points: activations of CPUs' integer kernels are unsigned.
_SCALE, _ZERO, _WEIGHT_ZERO = "scale", "zero", "weight_zero"


def products(precision: str) -> dict[str, onnx.ModelProto]:
    """Returns graphs that compute in a precision on a CPU, by what they compute.

    Inputs and outputs are float32, or uint8 if the precision is quantized.
    """
    image = (1, _CHANNELS, _SIDE, _SIDE)
    kernel = (_CHANNELS, _CHANNELS, _KERNEL, _KERNEL)
    return {
        "matrix product": _chain(
            "MatMul", precision, (_ROWS, _COLUMNS), (_COLUMNS, _COLUMNS), _PRODUCTS
        ),
        "convolution": _chain("Conv", precision, image, kernel, _CONVOLUTIONS),
    }


def _chain(
    operator: str,
    precision: str,
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    length: int,
) -> onnx.ModelProto:
    """Returns a graph that multiplies an input of a shape by several constants in turn."""
    row = PRECISIONS[precision]
    random = np.random.default_rng(0)
    constants: dict[str, np.ndarray[Any, Any]] = {}
    if row.quantized:
        scales = {_SCALE: np.float32(2**-6), _ZERO: np.uint8(128), _WEIGHT_ZERO: np.int8(0)}
        constants = {name: np.array(value) for name, value in scales.items()}
    kind = TensorProto.UINT8 if row.quantized else TensorProto.FLOAT
    inner = helper.np_dtype_to_tensor_dtype(np.dtype(row.weights))
    cast = not row.quantized and inner != kind
    nodes, value = [], INPUT
    if cast:
        nodes.append(helper.make_node("Cast", [value], [value := "converted"], to=inner))
    for index in range(length):
        name, product = f"weight{index}", f"product{index}"
        if row.quantized:
            constants[name] = random.integers(-64, 64, weight_shape, np.int8)
            left, right = f"left{index}", f"right{index}"
            nodes += [
                helper.make_node("DequantizeLinear", [value, _SCALE, _ZERO], [left]),
                helper.make_node("DequantizeLinear", [name, _SCALE, _WEIGHT_ZERO], [right]),
                helper.make_node(operator, [left, right], [product], product),
            ]
            value = f"quantized{index}"
            nodes.append(helper.make_node("QuantizeLinear", [product, _SCALE, _ZERO], [value]))
        else:
            # Of a variance that keeps the size of the values.
            inputs = np.prod(weight_shape) / weight_shape[0]
            weights = random.standard_normal(weight_shape, np.float32) / np.sqrt(inputs)
            constants[name] = weights.astype(row.weights)
            nodes.append(helper.make_node(operator, [value, name], [product], product))
            value = product
    lost = length * (_KERNEL - 1) if operator == "Conv" else 0
    output = [*shape[:2], *(side - lost for side in shape[2:])]
    end = (
        partial(helper.make_node, "Cast", to=kind)
        if cast
        else partial(helper.make_node, "Identity")
    )
    nodes.append(end([value], [_OUTPUT]))
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info(INPUT, kind, shape)],
        [helper.make_tensor_value_info(_OUTPUT, kind, output)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = helper.make_opsetid("", max(_OPSET, row.opset or 0))
    return helper.make_model(graph, opset_imports=[opset], ir_version=_IR_VERSION)

"""Counts multiply-adds: of convolutions, matrix products, recurrent layers and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from string import ascii_letters

import numpy as np
import onnx

from exporters.onnx_nodes import attribute, graphs_of

# Dtype and shape of values, by name.
Types = Mapping[str, tuple[str, tuple[int, ...]]]

# Convolutions and matrix products, with the places of their two factors among the inputs.
CONVOLUTIONS = {"Conv": (0, 1), "ConvInteger": (0, 1), "ConvTranspose": (0, 1)}
CONVOLUTIONS |= {"QLinearConv": (0, 3)}
_MATRIX_PRODUCTS = {"Gemm": (0, 1), "MatMul": (0, 1), "MatMulInteger": (0, 1)}
_MATRIX_PRODUCTS |= {"QLinearMatMul": (0, 3)}
_RECURRENT = ("RNN", "GRU", "LSTM")
_COUNTED = {*CONVOLUTIONS, *_MATRIX_PRODUCTS, *_RECURRENT, "Attention", "Einsum"}
# Operators of ONNX that multiply in ways that are not counted here.
_NOT_COUNTED = {"CausalConvWithState", "DFT", "DeformConv", "Det", "LinearAttention", "STFT"}
_NOT_COUNTED |= {"LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"}
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


def multiply_adds(node: onnx.NodeProto, types: Types, *, padding: bool) -> int | None:
    """Returns the multiply-adds of a node; 0 for an operator without products.

    Args:
        types: Dtype and shape of each value of the graph.
        padding: Count a convolution's products with its padding too, as is usual. No engine has to
            compute these.

    Returns:
        None if they are not known: the operator is not counted here, or is not one of ONNX; a
        subgraph multiplies; or the shapes are not known, as behind such an operator.
    """
    kind = node.op_type
    if node.domain not in _DOMAINS or kind in _NOT_COUNTED or _multiplies_within(node):
        return None
    if kind not in _COUNTED:
        return 0
    shapes = [types.get(name, ("", ()))[1] for name in node.input]
    output = next(filter(None, node.output), "")  # recurrent layers may leave out the first
    places = {**CONVOLUTIONS, **_MATRIX_PRODUCTS}.get(kind, (0, 1))
    factors = range(len(shapes)) if kind == "Einsum" else places
    if output not in types or any(node.input[place] not in types for place in factors):
        return None
    if kind != "Einsum" and any(not shapes[place] for place in factors):
        return None  # their rank is not known
    out = math.prod(types[output][1])
    if kind in CONVOLUTIONS:
        return _convolution(node, types, padding=padding)
    if kind in _MATRIX_PRODUCTS:
        transposed = kind == "Gemm" and attribute(node, "transA", 0)
        return out * shapes[places[0]][0 if transposed else -1]
    if kind in _RECURRENT:  # steps x rows, with the weights of all directions
        return math.prod(shapes[0][:2]) * (math.prod(shapes[1]) + math.prod(shapes[2]))
    if kind == "Attention":
        return _attention(node, shapes[0], shapes[1], shapes[2])
    try:
        return _einsum(attribute(node, "equation").decode(), shapes)
    except ValueError:  # a rank that is not known
        return None


def weights_met(node: onnx.NodeProto, types: Types) -> float:
    """Returns the part of a convolution's weights that meet its input, not only padding."""
    if any(name not in types for name in (*_factors(node), node.output[0])):
        return 1.0
    return math.prod(
        sum(count > 0 for count in counts) / max(1, len(counts)) for counts in _taps(node, types)
    )


def _multiplies_within(node: onnx.NodeProto) -> bool:
    """Whether a subgraph of a node has an operator with products, or an unknown one."""
    subgraphs = [graph for entry in node.attribute for graph in (entry.g, *entry.graphs)]
    return any(
        inner.domain not in _DOMAINS or inner.op_type in (_COUNTED | _NOT_COUNTED)
        for subgraph in subgraphs
        for graph in graphs_of(subgraph)
        for inner in graph.node
    )


def _factors(node: onnx.NodeProto) -> tuple[str, str]:
    data, weight = CONVOLUTIONS[node.op_type]
    return node.input[data], node.input[weight]


def _convolution(node: onnx.NodeProto, types: Types, *, padding: bool) -> int:
    """Returns the multiply-adds of a convolution.

    Weights are [out, in / groups, *kernel], those of a ConvTranspose [in, out / groups, *kernel].
    """
    data, weight = (types[name][1] for name in _factors(node))
    transposed = node.op_type == "ConvTranspose"
    strided = data if transposed else types[node.output[0]][1]
    if padding:
        return math.prod(strided) * math.prod(weight[1:])
    taps = math.prod(sum(counts) for counts in _taps(node, types))
    return math.prod(strided[:2]) * weight[1] * taps


def _taps(node: onnx.NodeProto, types: Types) -> list[list[int]]:
    """Returns, for each axis and place in the kernel, how many products are not with padding."""
    data, weight = (types[name][1][2:] for name in _factors(node))
    output = types[node.output[0]][1][2:]
    transposed = node.op_type == "ConvTranspose"
    # A ConvTranspose writes where the convolution that it is the transpose of reads.
    few, many = (data, output) if transposed else (output, data)
    strides = attribute(node, "strides", [1] * len(weight))
    dilations = attribute(node, "dilations", [1] * len(weight))
    pads = attribute(node, "pads", [0] * 2 * len(weight))
    added = attribute(node, "output_padding", [0] * len(weight))
    auto = attribute(node, "auto_pad", b"NOTSET").decode()
    shaped = transposed and attribute(node, "output_shape") is not None
    axes = []
    for axis, kernel in enumerate(weight):
        stride, dilation, pad = strides[axis], dilations[axis], pads[axis]
        if auto == "VALID":
            pad = 0
        elif shaped or auto.startswith("SAME"):
            spread = (few[axis] - 1) * stride + (kernel - 1) * dilation + 1
            both = max(0, spread + added[axis] - many[axis])
            pad = both // 2 if auto == "SAME_UPPER" else both - both // 2
        axes.append(
            [
                _within(few[axis], many[axis], stride, place * dilation - pad)
                for place in range(kernel)
            ]
        )
    return axes


def _within(count: int, size: int, stride: int, start: int) -> int:
    """Returns how many of `start + stride * i`, for i below `count`, lie in 0 to `size` - 1."""
    first = max(0, -(start // stride))
    last = min(count - 1, (size - 1 - start) // stride)
    return max(0, last - first + 1)


def _attention(
    node: onnx.NodeProto, query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...]
) -> int:
    """Returns the multiply-adds of both products of an Attention, without a cache of keys.

    Shapes are [rows, heads, length, size] or [rows, length, heads x size].
    """
    if len(query) == 4:  # noqa: PLR2004
        pairs = math.prod(query[:3]) * key[2]
        return pairs * (query[3] + value[3])
    pairs = query[0] * query[1] * key[1]
    groups: int = attribute(node, "q_num_heads", 1) // attribute(node, "kv_num_heads", 1)
    return pairs * (query[2] + groups * value[2])


def _einsum(equation: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Returns the multiply-adds of an Einsum whose operands are contracted in the best order.

    Axes that only one operand has are summed first, which multiplies nothing; and operands that
    have no axis to sum over are multiplied element by element, as by Mul, which does not count.

    Raises:
        ValueError: The equation does not fit the shapes.
    """
    operands, sizes = _labelled(equation, shapes)
    terms = operands[:-1]
    letters = dict(zip(sizes, ascii_letters, strict=False))
    *inputs, output = ("".join(letters[axis] for axis in term) for term in operands)
    arrays = [np.broadcast_to(np.float32(0), [sizes[axis] for axis in term]) for term in terms]
    path, _ = np.einsum_path(f"{','.join(inputs)}->{output}", *arrays, optimize="optimal")
    left = [set(term) for term in terms]
    total = 0
    for places in path[1:]:
        joined = [left.pop(place) for place in sorted(places, reverse=True)]
        elsewhere = set(operands[-1]).union(*left)
        if len(joined) == 2:  # noqa: PLR2004
            first, second = joined
            first, second = first & (second | elsewhere), second & (first | elsewhere)
            if (first | second) - elsewhere:
                total += math.prod(sizes[axis] for axis in first | second)
        left.append(set().union(*joined) & elsewhere)
    return total


def _labelled(
    equation: str, shapes: Sequence[tuple[int, ...]]
) -> tuple[list[list[str]], dict[str, int]]:
    """Returns the names of the axes of an Einsum's operands and output, and their sizes.

    The axes of an ellipsis are named by their number from the last on.
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    operands, sizes = [], dict[str, int]()
    for term, shape in zip(left.split(","), shapes, strict=True):
        before, dots, after = term.partition("...")
        more = len(shape) - len(before) - len(after) if dots else 0
        axes = [*before, *(str(number) for number in reversed(range(more))), *after]
        for axis, size in zip(axes, shape, strict=True):
            sizes[axis] = max(size, sizes.get(axis, 1)) if size else 0
        operands.append(axes)
    hidden = sorted((axis for axis in sizes if axis.isdigit()), key=int, reverse=True)
    if arrow:
        before, dots, after = right.partition("...")
        operands.append([*before, *(hidden if dots else ()), *after])
    else:  # the axes that occur once, in the order of the alphabet
        once = sorted(axis for axis in sizes if axis.isalpha() and left.count(axis) == 1)
        operands.append([*hidden, *once])
    return operands, sizes

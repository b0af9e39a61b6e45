"""Finds the tensor of a graph that carries each parameter of the module it was exported from.

Most parameters are in the graph unchanged or transposed. What is computed from parameters alone is
there as its result. A batch norm behind a convolution is folded into the convolution's weight and
bias: these then carry the batch norm's parameters, if they equal the fold computed in float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch
from torch import nn

from engines.contract import Array
from exporters.onnx_nodes import attribute

# Operators that a batch norm is folded into, and the output channels' axis of their weights.
_FOLDED_INTO = {
    torch.ops.aten.conv1d.default: 0,
    torch.ops.aten.conv2d.default: 0,
    torch.ops.aten.conv3d.default: 0,
    torch.ops.aten.linear.default: 0,
    torch.ops.aten.conv_transpose2d.input: 1,
}
# Batch norms in evaluation mode, and the place of epsilon among their arguments.
_BATCH_NORMS = {
    torch.ops.aten.batch_norm.default: 7,
    torch.ops.aten._native_batch_norm_legit_no_training.default: 6,
}


@dataclass(frozen=True)
class _Fold:
    """A batch norm and the layer before it, by the names of their parameters.

    Attributes:
        axis: The output channels' axis of `weight`.
    """

    weight: str
    bias: str | None
    gamma: str | None
    beta: str | None
    mean: str
    variance: str
    epsilon: float
    axis: int


def trace_weights(program: Any, graph: onnx.ModelProto, roundings: int) -> dict[str, Array]:
    """Returns the tensor that carries each parameter and buffer that the program reads.

    Args:
        program: The torch.export program.
        graph: The ONNX model that was made from it.
        roundings: How many roundings a folded tensor may be off by.

    Returns:
        By the parameter's name, the tensor of the graph that was made from it, or else its own
        value. A fold that float64 does not confirm is ignored: the parameter then keeps its own
        value, and an audit of the graph does not find it.
    """
    state = {name: _array(tensor) for name, tensor in program.state_dict.items()}
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    read = {names[node.name] for node in program.graph.nodes if node.name in names and node.users}
    values = {name: state[name] for name in sorted(read) if name in state}
    tensors = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer
    }
    missing = {name for name in values if name not in tensors}
    values |= _computed(program, names, missing, tensors, roundings)
    for node in program.graph.nodes:
        if node.target in _FOLDED_INTO:
            bias = names.get(getattr([*node.args, None][2], "name", ""))
            if bias is not None and bias not in tensors and not state[bias].any():
                values.pop(bias, None)  # a bias of zeros is left out of the graph
        fold = _fold(node, names)
        if fold is not None:
            values |= _carried(fold, state, tensors, roundings)
    return values


def _computed(
    program: Any,
    names: Mapping[str, str],
    wanted: set[str],
    tensors: Mapping[str, Array],
    roundings: int,
) -> dict[str, Array]:
    """Returns the tensors of the graph that hold values computed from parameters alone.

    A transposed weight, or rows that a constant index picks from a table, are there bit for bit,
    since moving numbers does not round them. A computed value, such as an attention bias that a
    small network makes from distances, has to equal the float64 result within `roundings`.
    """
    by_content = {_content(array): array for array in tensors.values()}
    computed: dict[str, Array] = {}
    for value, made_of in _constant_values(program, names, exact=False):
        forms = [value, value.T] if value.ndim == 2 else [value]  # noqa: PLR2004 - a matrix
        for form in forms:
            carrier = by_content.get(_content(form))
            if carrier is not None:
                computed = dict.fromkeys(made_of & wanted, carrier) | computed
    wanted = wanted - computed.keys()
    if not wanted:
        return computed
    for value, made_of in _constant_values(program, names, exact=True):
        # A value that float32 holds exactly was only moved, so it was looked for above.
        if value.dtype.kind == "c" or not made_of & wanted:
            continue
        if (value.astype(np.float32) != value).any():
            size = np.broadcast_to(np.abs(value).max(), value.shape)
            for array in tensors.values():
                if array.size == value.size and _close(
                    array.reshape(value.shape), value, size, roundings
                ):
                    computed = dict.fromkeys(made_of & wanted, array) | computed
    return computed


def _constant_values(
    program: Any, names: Mapping[str, str], *, exact: bool
) -> Iterator[tuple[Array, set[str]]]:
    """Computes every value that depends on parameters alone.

    Args:
        exact: Compute in float64 instead of the parameters' own types.

    Yields:
        Each value and the names of the parameters it is made from, the last computed first: an
        exporter may fold only a part of a chain of operators.
    """
    state = {**program.state_dict, **program.constants}
    constants = {**names, **program.graph_signature.inputs_to_lifted_tensor_constants}
    values: dict[Any, tuple[torch.Tensor, set[str]]] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and constants.get(node.name) in state:
            name = constants[node.name]
            tensor = state[name].detach()
            wider = exact and tensor.is_floating_point()
            values[node] = tensor.double() if wider else tensor, {name}
        elif node.op == "call_function" and node.all_input_nodes:
            parts = [values.get(input_node) for input_node in node.all_input_nodes]
            if None in parts or not isinstance(node.meta.get("val"), torch.Tensor):
                continue
            args, kwargs = torch.fx.node.map_arg(
                (node.args, node.kwargs), lambda input_node: values[input_node][0]
            )
            made_of = set[str]().union(*(part[1] for part in parts if part))
            if node.target is torch.ops.aten.linear.default and args[2:]:
                # In ONNX this is a product and a sum, and an exporter may fold only the product.
                product = values[node.args[0]][1] | values[node.args[1]][1]
                values[node, "product"] = node.target(*args[:2]), product
            values[node] = node.target(*args, **kwargs), made_of
    for tensor, made_of in reversed(values.values()):
        yield _array(tensor), made_of


def _content(array: Array) -> tuple[str, bytes]:
    """Returns the dtype and a digest of the values of an array, whatever its shape."""
    return array.dtype.name, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def state_of(module: nn.Module) -> dict[str, Array]:
    """Returns the value of every parameter and buffer of a module, by its name."""
    return {name: _array(tensor) for name, tensor in module.state_dict().items()}


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


def _array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has it only through ml_dtypes
        bits: Array = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array


def _fold(node: Any, names: Mapping[str, str]) -> _Fold | None:
    """Returns the fold of a node, if it is a batch norm behind a layer that it can fold into."""
    epsilon = _BATCH_NORMS.get(node.target)
    if epsilon is None:
        return None
    inner = node.args[0]
    axis = _FOLDED_INTO.get(inner.target)
    if axis is None or len(inner.users) != 1:
        return None
    before = [*inner.args[1:3], None][:2]  # a layer without a bias may leave the argument out
    parts = [names.get(getattr(part, "name", "")) for part in (*before, *node.args[1:5])]
    weight, bias, gamma, beta, mean, variance = parts
    if weight is None or mean is None or variance is None:
        return None
    return _Fold(weight, bias, gamma, beta, mean, variance, node.args[epsilon], axis)


def refold(program: Any, graph: onnx.ModelProto) -> None:
    """Replaces the batch norms that an optimizer has folded by folds computed in float64.

    The optimizer folds in the type of the weights. In fp16 its roundings cost more than fp16
    itself; in bf16 it gives float32 tensors, which do not fit the nodes that read them.
    """
    state = {name: _array(tensor) for name, tensor in program.state_dict.items()}
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in program.graph.nodes:
        fold = _fold(node, names)
        if fold is None or fold.variance in tensors or fold.weight not in tensors:
            continue  # no batch norm, or not folded
        weight, shift, _ = _in_float64(fold, state)
        dtype = state[fold.weight].dtype
        for name, value in ((fold.weight, weight), (_bias(fold, tensors), shift)):
            if name in tensors and list(tensors[name].dims) == list(value.shape):
                tensors[name].CopyFrom(onnx.numpy_helper.from_array(value.astype(dtype), name))


def _bias(fold: _Fold, tensors: Container[str]) -> str:
    """Returns the name that the optimizer gives a folded bias.

    The optimizer adds one if the layer had none, or one of zeros, which it has removed before.
    """
    return fold.bias if fold.bias is not None and fold.bias in tensors else f"{fold.weight}_bias"


def _in_float64(fold: _Fold, state: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """Returns the folded weight and bias, and the magnitude of the bias's terms."""

    def value(name: str | None, otherwise: float) -> Array:
        return np.array(otherwise) if name is None else state[name].astype(np.float64)

    scale = value(fold.gamma, 1) / np.sqrt(value(fold.variance, 1) + fold.epsilon)
    shape = [1] * state[fold.weight].ndim
    shape[fold.axis] = -1
    weight = value(fold.weight, 1) * scale.reshape(shape)
    mean, beta, inner = value(fold.mean, 0), value(fold.beta, 0), value(fold.bias, 0)
    shift = (inner - mean) * scale + beta
    # Terms may cancel, and each was rounded at its own magnitude, not at that of the sum.
    size = (np.abs(inner) + np.abs(mean)) * np.abs(scale) + np.abs(beta)
    return weight, shift, size


def _carried(
    fold: _Fold, state: Mapping[str, Array], tensors: Mapping[str, Array], roundings: int
) -> dict[str, Array]:
    """Returns the tensors of the graph that carry a fold's parameters; empty without the fold."""
    weight, shift, size = _in_float64(fold, state)
    tensor = tensors.get(fold.weight)
    if tensor is None or not _close(tensor, weight, np.abs(weight), roundings):
        return {}
    carried = {fold.weight: tensor}
    rest = [name for name in (fold.bias, fold.gamma, fold.beta, fold.mean, fold.variance) if name]
    if not shift.any():  # the optimizer leaves out a bias of zeros
        return carried | dict.fromkeys(rest, tensor)
    bias = tensors.get(_bias(fold, tensors))
    if bias is None or not _close(bias, shift, size, roundings):
        return {}
    return carried | dict.fromkeys(rest, bias)


def _close(array: Array, expected: Array, size: Array, roundings: int) -> bool:
    """Whether a tensor equals a float64 one, up to `roundings` of terms of magnitude `size`."""
    if array.shape != expected.shape or array.dtype.kind in "biu":
        return False
    kind = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]  # knows bfloat16
    error = np.abs(array.astype(np.float64) - expected)
    limit = roundings * float(kind.eps) / 2 * size + float(kind.tiny)
    return bool((error <= limit).all())

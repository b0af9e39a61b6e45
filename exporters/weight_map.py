"""What a graph of a torch.export program may hold in place of each parameter.

Most parameters are in a graph unchanged or transposed. What is computed from parameters alone is
there as its result. Batch norms and other operators that scale and shift channels are folded into
the weight and bias of the layer before them: these then carry all parameters of the fold.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from engines.contract import Array
from exporters.program_constants import Held, array_of, is_constant, wide
from exporters.weight_match import Expectations, Expected, match, tensors_of

_aten = torch.ops.aten
# Layers that operators are folded into, each with the axis of the output channels of its weight.
# That of a transposed convolution is split into groups: it has the channels of one.
_LAYERS = {
    _aten.conv1d.default: 0,
    _aten.conv2d.default: 0,
    _aten.conv3d.default: 0,
    _aten.conv1d.padding: 0,
    _aten.conv2d.padding: 0,
    _aten.conv3d.padding: 0,
    _aten.linear.default: 0,
    _aten.conv_transpose1d.default: 1,
    _aten.conv_transpose2d.input: 1,
    _aten.conv_transpose3d.input: 1,
}
_GROUPS = 6  # the place of the groups among the arguments of a transposed convolution
# Batch norms in evaluation mode, and the place of epsilon among their arguments.
_BATCH_NORMS = {
    _aten.batch_norm.default: 7,
    _aten._native_batch_norm_legit_no_training.default: 6,
}
# Recurrent layers, and the places of ONNX's gates, in its order, among PyTorch's.
_GATES = {
    _aten.lstm.input: (0, 3, 1, 2),
    _aten.gru.input: (1, 0, 2),
    _aten.rnn_tanh.input: (0,),
    _aten.rnn_relu.input: (0,),
}
# The same layers, by `nn.RNNBase.mode`.
_MODES = dict(zip(("LSTM", "GRU", "RNN_TANH", "RNN_RELU"), _GATES, strict=True))
_PRODUCTS = {_aten.mul.Tensor, _aten.mul_.Tensor, _aten.div.Tensor, _aten.div_.Tensor}
_SUMS = {_aten.add.Tensor, _aten.add_.Tensor, _aten.sub.Tensor, _aten.sub_.Tensor}
_INVERSE = {_aten.div.Tensor, _aten.div_.Tensor, _aten.sub.Tensor, _aten.sub_.Tensor}


def trace_weights(program: Any, graph: onnx.ModelProto, roundings: int) -> dict[str, Array]:
    """Returns the tensor that carries each parameter and buffer that the program reads.

    Args:
        program: The torch.export program.
        graph: The ONNX model that was made from it.
        roundings: How many roundings a computed tensor may be off by.

    Returns:
        By the parameter's name, the tensor of the graph that was made from it, or else its own
        value. A fold that float64 does not confirm is ignored: the parameter then keeps its own
        value, and an audit of the graph does not find it. A parameter that is in several tensors,
        such as a weight that was split, has an entry for each.
    """
    expected = expectations(program)
    tensors = tensors_of(graph)
    matched = match(expected, tensors, roundings)
    weights = {
        name: tensors[matched.carriers[name]] if name in matched.carriers else value
        for name, value in expected.parameters.items()
        if name in matched.carriers or name not in expected.omissible
    }
    parts = {
        f"{min(names)} (in {tensor})": tensors[tensor] for tensor, names in matched.more.items()
    }
    return weights | parts


def traced_weights(module: nn.Module, graph: onnx.ModelProto, roundings: int) -> dict[str, Array]:
    """Returns the tensor that carries each parameter and buffer of a module without a program.

    It follows what is in the graph as it is or transposed, and recurrent layers.

    Args:
        graph: The ONNX model that TorchScript made from the module.
        roundings: How many roundings a computed tensor may be off by.
    """
    state = state_of(module)

    def computed() -> Iterator[Expected]:
        for path, layer in module.named_modules():
            if isinstance(layer, nn.RNNBase):
                names = [f"{path}.{name}".lstrip(".") for name in layer._flat_weights_names]
                shape = layer.num_layers, 1 + layer.bidirectional, 4 if layer.bias else 2
                yield from _packed(_MODES[layer.mode], shape, names, state.__getitem__)

    tensors = tensors_of(graph)
    carriers = match(Expectations(state, computed=computed), tensors, roundings).carriers
    return {name: tensors[carriers[name]] if name in carriers else state[name] for name in state}


def expectations(program: Any) -> Expectations:
    """Returns what a graph of a torch.export program may hold."""
    held = Held(program)
    nodes = program.graph.nodes
    read = {held.names[node.name] for node in nodes if node.name in held.names and node.users}
    parameters = {name: array_of(held.tensors[name]) for name in sorted(read & held.parameters)}
    layers = [_Layer(node, held) for node in nodes if node.target in _LAYERS]
    zeros = {layer.bias for layer in layers if layer.bias and not parameters[layer.bias].any()}
    return Expectations(
        parameters,
        frozenset(zeros),
        layers,
        partial(_computed, program, held),
        [array_of(held.tensors[name]) for name in sorted(held.tensors.keys() - held.parameters)],
    )


@dataclass(frozen=True)
class _Affine:
    """An operator that gives `x * scale + shift` for each channel.

    Attributes:
        scale: In float64, `[channels]` or a scalar; and so are the others.
        size: The magnitude of the terms of `shift`. They may cancel, and each was rounded at its
            own magnitude, not at that of the sum.
        names: The parameters that it has.
    """

    scale: Array
    shift: Array
    size: Array
    names: frozenset[str]


class _Layer:
    """A convolution or linear layer of a program, with the operators that may be folded into it.

    Attributes:
        weight: The name of its weight; "" if that is computed.
        bias: The name of its bias; "" if it has none, or a computed one.
        node: Its node in the program.
    """

    def __init__(self, node: Any, held: Held) -> None:
        self.node = node
        # A layer without a bias may leave the argument out.
        self._weight, self._bias = [*node.args[1:3], None][:2]
        self.weight, self.bias = held.parameter(self._weight), held.parameter(self._bias)
        self._held = held
        linear = node.target is _aten.linear.default
        self._axis = node.meta["val"].ndim - 1 if linear else 1
        self._channels = int(node.meta["val"].shape[self._axis])

    def folds(self) -> Iterator[tuple[Expected, Expected]]:
        """See `exporters.weight_match.Layer`."""
        names, more = self._held.made_of(self._weight), self._held.made_of(self._bias)
        if not names or more is None:
            return
        steps = list(self._behind())
        for count in range(len(steps), 0, -1):
            yield self._fold(names, more, steps[:count])

    def _fold(
        self, names: frozenset[str], more: frozenset[str], steps: Sequence[_Affine]
    ) -> tuple[Expected, Expected]:
        scale, shift = np.ones(self._channels), self._held.exact(self._bias)
        size = np.abs(shift)
        for step in steps:
            scale, shift = scale * step.scale, shift * step.scale + step.shift
            size = size * np.abs(step.scale) + step.size
            more |= step.names
        weight = self._held.exact(self._weight)
        spread = scale.reshape(-1, *[1] * (weight.ndim - 1))
        if _LAYERS[self.node.target] == 1:
            groups = [*self.node.args, 1][_GROUPS] if len(self.node.args) > _GROUPS else 1
            spread = scale.reshape(groups, -1, *[1] * (weight.ndim - 2))
            spread = spread.repeat(len(weight) // groups, axis=0)
        weight = weight * spread
        shift, size = (np.broadcast_to(part, self._channels) for part in (shift, size))
        return Expected(names, weight, np.abs(weight)), Expected(more - names, shift, size)

    def batch_norm(self) -> Any:
        """Returns the node of the batch norm directly behind the layer; None without one."""
        users = [*self.node.users]
        fits = len(users) == 1 and users[0].target in _BATCH_NORMS
        return users[0] if fits and self._axis == 1 else None

    def _behind(self) -> Iterator[_Affine]:
        node = self.node
        while len(node.users) == 1:
            before, node = node, next(iter(node.users))
            if node.target is operator.getitem and node.args[1] == 0:
                continue  # a decomposed batch norm has several results
            if node.target in _BATCH_NORMS:
                step = self._norm(node)
            elif node.target in _PRODUCTS or node.target in _SUMS:
                step = self._by_constant(node, before)
            else:
                return
            if step is None:
                return
            yield step

    def _norm(self, node: Any) -> _Affine | None:
        parts = node.args[1:5]
        names = [self._held.made_of(part) for part in parts]
        if None in names or self._axis != 1:  # a batch norm's channels are axis 1
            return None
        gamma, beta, mean, variance = map(self._held.exact, parts, (1.0, 0.0, 0.0, 1.0))
        scale = gamma / np.sqrt(variance + node.args[_BATCH_NORMS[node.target]])
        size = np.abs(mean * scale) + np.abs(beta)
        return _Affine(scale, beta - mean * scale, size, frozenset().union(*filter(None, names)))

    def _by_constant(self, node: Any, before: Any) -> _Affine | None:
        """Returns a product or sum with a constant, if that has one number for each channel."""
        inverse = node.target in _INVERSE
        others = [arg for arg in node.args if arg is not before]
        if len(others) != 1 or node.kwargs or (inverse and node.args[0] is not before):
            return None
        names = self._held.made_of(others[0])
        if names is None:
            return None
        value = self._held.exact(others[0])
        missing = node.meta["val"].ndim - value.ndim
        shape = [1] * missing + list(value.shape)
        if missing < 0 or any(length != 1 for i, length in enumerate(shape) if i != self._axis):
            return None
        value = value.ravel()
        zero, one = np.zeros(1), np.ones(1)
        if node.target in _PRODUCTS:
            return _Affine(1 / value if inverse else value, zero, zero, names)
        return _Affine(one, -value if inverse else value, np.abs(value), names)


def _computed(program: Any, held: Held) -> Iterator[Expected]:
    """Yields all values that depend on parameters alone, the last computed first.

    An exporter may fold only a part of a chain of operators. A transposed weight, or rows that a
    constant index picks from a table, are in the graph bit for bit, since moving numbers does not
    round them. A computed value, such as an attention bias that a small network makes from
    distances, equals the float64 result up to rounding.
    """
    for node in program.graph.nodes:
        if node.target in _GATES:
            yield from _recurrent(node, held)
    for value, names in _constant_values(program, held, exact=False):
        yield Expected(names, value)
    for value, names in _constant_values(program, held, exact=True):
        # A value that float32 holds exactly was only moved, so it was looked for above.
        if value.dtype.kind != "c" and (value.astype(np.float32) != value).any():
            yield Expected(names, value, np.abs(value).max())


def _recurrent(node: Any, held: Held) -> Iterator[Expected]:
    """Yields the weights and biases of a recurrent layer of a program in ONNX's form."""
    parts, biased, layers, _, _, both = node.args[2:8]
    names = [held.parameter(part) for part in parts]
    shape = layers, 1 + both, 4 if biased else 2
    yield from _packed(node.target, shape, names, lambda name: array_of(held.tensors[name]))


def _packed(
    target: Any, shape: tuple[int, int, int], names: Sequence[str], value: Callable[[str], Array]
) -> Iterator[Expected]:
    """Yields the weights and biases of a recurrent layer in ONNX's form.

    That has its gates in another order, both directions in one tensor, and both biases in one.

    Args:
        target: The operator.
        shape: The numbers of layers, of directions, and of tensors for each of these.
        names: The parameters, in the order of the operator's argument; "" for a computed one.
        value: Returns a parameter.
    """
    layers, directions, kinds = shape
    if not all(names) or len(names) != layers * directions * kinds:
        return  # such as a projection, which ONNX lacks
    gates = _GATES[target]

    def ordered(name: str) -> Array:
        pieces = np.split(value(name), len(gates))
        return np.concatenate([pieces[gate] for gate in gates])

    for layer in range(layers):
        first = layer * directions * kinds
        for kind in ((0,), (1,), (2, 3))[:kinds]:  # without biases, there are two kinds
            used = [[names[first + d * kinds + k] for k in kind] for d in range(directions)]
            packed = np.stack([np.concatenate([*map(ordered, some)]) for some in used])
            yield Expected(frozenset(name for some in used for name in some), packed)


def _constant_values(
    program: Any, held: Held, *, exact: bool
) -> Iterator[tuple[Array, frozenset[str]]]:
    """Computes every value that depends on parameters alone.

    Args:
        exact: Compute in float64 instead of the parameters' own types.

    Yields:
        Each value and the names of the parameters it is made from, the last computed first.
    """
    values: dict[Any, tuple[Any, frozenset[str]]] = {}

    def part(node: Any) -> tuple[Any, frozenset[str]] | None:
        if node.name not in held.names:
            return values.get(node)
        tensor = held.tensors[held.names[node.name]]
        return wide(tensor) if exact else tensor, held.made_of(node) or frozenset()

    for node in program.graph.nodes:
        if node.op != "call_function" or not is_constant(node):
            continue
        parts = {before: part(before) for before in node.all_input_nodes}
        if None in parts.values():
            continue
        known = {before: value for before, value in parts.items() if value}
        tensors = {before: tensor for before, (tensor, _) in known.items()}
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), tensors.__getitem__)
        names = frozenset[str]().union(*(made_of for _, made_of in known.values()))
        if node.target is _aten.linear.default and args[2:]:
            # In ONNX this is a product and a sum, and an exporter may fold only the product.
            product = known[node.args[0]][1] | known[node.args[1]][1]
            values[node, "product"] = node.target(*args[:2]), product
        value = node.target(*args, **kwargs)
        values[node] = wide(value) if exact else value, names
    for value, names in reversed(values.values()):
        if isinstance(value, torch.Tensor):  # not all parts of a split tensor
            yield array_of(value), names


def state_of(module: nn.Module) -> dict[str, Array]:
    """Returns the value of every parameter and buffer of a module, by its name."""
    return {name: array_of(tensor) for name, tensor in module.state_dict().items()}


def refold(program: Any, graph: onnx.ModelProto) -> None:
    """Replaces the batch norms that an optimizer has folded by folds computed in float64.

    The optimizer folds in the type of the weights. In fp16 its roundings cost more than fp16
    itself; in bf16 it gives float32 tensors, which do not fit the nodes that read them.
    """
    held = Held(program)
    tensors = {tensor.name: tensor for tensor in graph.graph.initializer}
    for node in program.graph.nodes:
        layer = _Layer(node, held) if node.target in _LAYERS else None
        norm = layer.batch_norm() if layer else None
        if layer is None or norm is None or layer.weight not in tensors:
            continue
        folds = [*layer.folds()]
        if not folds or held.parameter(norm.args[4]) in tensors:
            continue  # it was not folded
        # The optimizer adds a bias if the layer had none, or one of zeros, which it removed before.
        bias = layer.bias if layer.bias in tensors else f"{layer.weight}_bias"
        dtype = array_of(held.tensors[layer.weight]).dtype
        for name, folded in zip((layer.weight, bias), folds[-1], strict=True):
            if name in tensors and list(tensors[name].dims) == list(folded.value.shape):
                array = folded.value.astype(dtype)
                tensors[name].CopyFrom(onnx.numpy_helper.from_array(array, name))

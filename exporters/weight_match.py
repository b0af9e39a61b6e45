"""Finds the tensors of a graph that carry a model's parameters, by their values, not their names.

A graph holds a parameter as it is, transposed, folded with the operators behind its layer, or in
the result of a computation that depends on parameters alone. What was only moved has to be there
bit for bit; what was computed has to equal the float64 result up to a few roundings.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import ml_dtypes
import numpy as np
import onnx

from engines.contract import Array

_PART = 1 << 12  # how many elements are compared at a time
# A tensor is a changed parameter if it differs from it by at most this part of its norm. A fault
# that moves a weight further shows in the outputs; and a tool may have computed such a tensor from
# the parameter in a way that is not followed here, or put its numbers in another order.
_NEAR = 0.25

Content = tuple[str, bytes]


@dataclass(frozen=True)
class Expected:
    """A value that a graph holds if it holds the parameters that the value is made from.

    Attributes:
        names: The parameters.
        value: In their own type if it has to be there bit for bit; else in float64.
        size: The magnitude of the terms of each element, on which the rounding depends, of a
            shape that broadcasts to the value's; None for a value that was only moved.
    """

    names: frozenset[str]
    value: Array
    size: Array | None = None


class Layer(Protocol):
    """A layer that a graph may hold with the operators behind it folded in.

    Attributes:
        weight: The name of its weight; "" if that is computed from parameters.
    """

    weight: str

    def folds(self) -> Iterator[tuple[Expected, Expected]]:
        """Yields the folded weight and bias, with the most operators first.

        The bias has the names of all parameters but the weight's.
        """


@dataclass(frozen=True)
class Expectations:
    """What a graph of a model may hold.

    Attributes:
        parameters: The value of each parameter and buffer that the model reads, by name.
        omissible: Parameters that exporters leave out, such as a bias of zeros.
        layers: Layers with operators behind them that may be folded in.
        computed: Yields values that are computed from parameters alone.
        constants: Values that the model holds besides its parameters.
    """

    parameters: Mapping[str, Array]
    omissible: frozenset[str] = frozenset()
    layers: Sequence[Layer] = ()
    computed: Callable[[], Iterator[Expected]] = lambda: iter(())
    constants: Sequence[Array] = ()


@dataclass(frozen=True)
class Match:
    """Which tensor of a graph carries each parameter.

    Attributes:
        carriers: The tensor's name, by parameter.
        unused: Tensors that carry none, and no other value that the model has.
        shared: Parameters that have no tensor of their own, since another parameter with the same
            values is carried by it, or since it may be left out.
        folded: Parameters that the graph holds in a folded bias, if at all.
        more: Tensors that hold other parts of parameters which have a carrier, as of a weight that
            was split, with the names of these.
    """

    carriers: dict[str, str]
    unused: frozenset[str]
    shared: frozenset[str]
    folded: frozenset[str]
    more: Mapping[str, frozenset[str]]


def tensors_of(model: onnx.ModelProto) -> dict[str, Array]:
    """Returns the constants that an output of a graph depends on, by name.

    Constants that no output depends on prove nothing.
    """
    makers = {output: node for node in model.graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays: dict[str, Array] = {}
    seen: set[str] = set()
    todo = [value.name for value in model.graph.output]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in tensors:
            arrays[name] = onnx.numpy_helper.to_array(tensors[name])
        elif name in makers:
            node = makers[name]
            todo += node.input
            for attribute in node.attribute:
                if node.op_type == "Constant" and attribute.name == "value":
                    arrays[name] = onnx.numpy_helper.to_array(attribute.t)
                for graph in (attribute.g, *attribute.graphs):
                    _inside(graph, todo, arrays)
    return arrays


def _inside(graph: onnx.GraphProto, todo: list[str], arrays: dict[str, Array]) -> None:
    """Adds all constants of a subgraph, and all names that it may read from outside."""
    arrays |= {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    todo += [value.name for value in graph.output]
    for node in graph.node:
        todo += node.input
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                arrays[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
            for inner in (attribute.g, *attribute.graphs):
                _inside(inner, todo, arrays)


def match(expected: Expectations, tensors: Mapping[str, Array], roundings: int) -> Match:
    """Finds the tensor that carries each parameter.

    Args:
        tensors: See `tensors_of`.
        roundings: How many roundings a computed tensor may be off by.
    """
    search = _Search(expected.parameters.keys(), tensors, roundings)
    for array in expected.constants:
        search.claim_constant(array)
    # Folds come first. Otherwise the ones and zeros of an untrained batch norm that was folded
    # would be found in those of another one.
    folded: set[str] = set()
    for layer in expected.layers:
        raw = expected.parameters.get(layer.weight)
        if (raw is None or not search.holds(raw)) and (fold := _best_fold(search, layer)):
            folded |= fold[1].names
            _carry_fold(search, *fold)
    for name, value in expected.parameters.items():
        if name not in folded:
            search.carry(Expected(frozenset([name]), value))
    wanted = expected.parameters.keys() - expected.omissible
    if wanted - search.carriers.keys() or search.has_unclaimed():
        for item in expected.computed():
            if item.names & wanted - search.carriers.keys() or search.has_unclaimed(item.value):
                search.carry(item)
    if wanted - search.carriers.keys():
        _carry_other_folds(search, expected.layers)
    omitted = expected.parameters.keys() & expected.omissible - search.carriers.keys()
    return Match(
        search.carriers,
        frozenset(tensors.keys() - search.claimed),
        frozenset(search.shared | omitted),
        frozenset(folded),
        search.more,
    )


def _carry_other_folds(search: _Search, layers: Sequence[Layer]) -> None:
    """Looks for folds of weights that are in the graph as they are, too, and for their biases."""
    for layer in layers:
        if fold := _best_fold(search, layer):
            if fold[1].names - search.carriers.keys():
                _carry_fold(search, *fold)
            continue
        for _, bias in layer.folds():  # the weight was changed
            if bias.value.any() and bias.names - search.carriers.keys() and search.carry(bias):
                break


def _best_fold(search: _Search, layer: Layer) -> tuple[Expected, Expected] | None:
    """Returns the fold whose weight and bias are in the graph, or else whose weight is."""
    fold = None
    for weight, bias in layer.folds():
        if search.find(weight):
            fold = weight, bias
            if search.find(bias) or not bias.value.any():
                break
    return fold


def _carry_fold(search: _Search, weight: Expected, bias: Expected) -> None:
    """Notes the tensors of a fold. A bias of zeros may be left out: then the weight carries all."""
    carrier = search.carry(weight)
    if not search.carry(bias) and not bias.value.any():
        search.shared |= bias.names - search.carriers.keys()
        search.carriers |= {n: carrier for n in bias.names if n not in search.carriers}


def changed(expected: Expectations, tensors: Mapping[str, Array], matched: Match) -> dict[str, str]:
    """Returns the tensors that stand for parameters, but have other values.

    Args:
        matched: The match of these tensors.

    Returns:
        The tensor's name, by parameter. A parameter that another tensor carries is listed, too: it
        may be used twice, or have the values of another one.
    """
    missing = expected.parameters.keys() - expected.omissible - matched.carriers.keys()
    rest = unexplained(expected, tensors, matched)
    shapes = {np.squeeze(form).shape for name in rest for form in forms(tensors[name])}
    pairs: list[tuple[bool, float, Expected, str]] = []
    for item in _changeable(expected, matched) if rest else ():
        if np.squeeze(item.value).shape in shapes and item.value.dtype.kind not in "biuc":
            own = not item.names & (missing | matched.shared)  # it has a tensor of its own
            pairs += [
                (own, distance, item, name)
                for name in rest
                if (distance := _distance(tensors[name], item.value, zeros=not own)) <= _NEAR
            ]
    changes: dict[str, str] = {}
    for _, _, item, name in sorted(pairs, key=lambda pair: pair[:2]):
        # Of several parameters in one tensor, those that nothing else confirms.
        names = item.names & (missing | matched.shared) or item.names
        if name in rest and names - changes.keys():
            rest.remove(name)
            changes = dict.fromkeys(names, name) | changes
    return changes


def unexplained(expected: Expectations, tensors: Mapping[str, Array], matched: Match) -> set[str]:
    """Returns the numbers in a graph that are no copy of anything that the model holds."""
    copies = [tensors[name] for name in matched.carriers.values()]
    known = {content(array) for array in (*copies, *expected.parameters.values())}
    return {
        name
        for name in matched.unused
        if tensors[name].dtype.kind not in "biu"
        and not any(content(form) in known for form in forms(tensors[name]))
    }


def _changeable(expected: Expectations, matched: Match) -> Iterator[Expected]:
    """Yields every value that may be in the graph changed."""
    for name, value in expected.parameters.items():
        if name not in matched.folded:
            yield Expected(frozenset([name]), value)
    for layer in expected.layers:
        for fold in layer.folds():
            yield from (item for item in fold if item.names)
    yield from (item for item in expected.computed() if item.names)


def _distance(tensor: Array, value: Array, *, zeros: bool) -> float:
    """Returns the norm of the difference, as a part of the value's norm; inf between two shapes.

    A tensor with NaN or Inf is just near enough.

    Args:
        zeros: Any tensor is just near enough to a value of zeros, instead of none.
    """
    distances = [np.inf]
    target = np.squeeze(value).astype(np.float64)
    size = float(np.linalg.norm(target))
    for form in map(np.squeeze, forms(tensor)):
        if form.shape == target.shape:
            other = form.astype(np.float64)
            if not np.isfinite(other).all() or (zeros and not size):
                return _NEAR
            distances.append(float(np.linalg.norm(other - target)) / size if size else np.inf)
    return min(distances)


class _Search:
    """A search for values among the tensors of a graph.

    Attributes:
        carriers: The name of the tensor found for each parameter.
        claimed: Tensors that were found for a parameter.
        shared: Parameters whose tensor was found for another one before.
        more: See `Match`.
    """

    def __init__(
        self, parameters: Collection[str], tensors: Mapping[str, Array], roundings: int
    ) -> None:
        self.carriers: dict[str, str] = {}
        self.claimed: set[str] = set()
        self.shared: set[str] = set()
        self.more: dict[str, frozenset[str]] = {}
        self._parameters = parameters
        self._tensors = tensors
        self._roundings = roundings
        self._by_content: dict[Content, list[str]] = defaultdict(list)
        self._by_size: dict[int, list[str]] = defaultdict(list)
        for name, array in tensors.items():
            for key in {content(form) for form in forms(array)}:
                self._by_content[key].append(name)
            self._by_size[array.size].append(name)

    def holds(self, value: Array) -> bool:
        """Whether a tensor has these very values."""
        return content(value) in self._by_content

    def claim_constant(self, value: Array) -> None:
        """Notes that all tensors with a value are known."""
        self.claimed.update(self._by_content.get(content(value), ()))

    def has_unclaimed(self, value: Array | None = None) -> bool:
        """Whether a tensor is not known: of the size of a value, or of any beyond a number."""
        sizes = self._by_size if value is None else (value.size,)
        return any(
            name not in self.claimed and self._tensors[name].dtype.kind not in "biu"
            for size in sizes
            if size > 1
            for name in self._by_size.get(size, ())
        )

    def find(self, item: Expected) -> str:
        """Returns the name of a tensor with a value; "" if there is none."""
        if item.size is None:
            candidates = self._by_content.get(content(item.value), [])
        else:
            candidates = [
                name
                for name in self._by_size.get(item.value.size, ())
                if _close(self._tensors[name], item, self._roundings)
            ]
        # A parameter takes no tensor that another one may need.
        return min(
            candidates,
            key=lambda n: (n in self.claimed, n not in item.names, n in self._parameters),
            default="",
        )

    def carry(self, item: Expected) -> str:
        """Does the same as `find`, and notes the tensor for all parameters that have none yet."""
        name = self.find(item)
        if not name:
            return ""
        names = item.names - self.carriers.keys()
        if name in self.claimed:
            self.shared |= names
        elif item.names and not names:
            self.more[name] = item.names
        self.claimed.add(name)
        self.carriers |= dict.fromkeys(names, name)
        return name


def content(array: Array) -> Content:
    """Returns the kind and a digest of the values of an array, whatever its shape and width."""
    if array.dtype.kind in "iu":
        array = array.astype(np.int64)
    elif array.dtype.kind != "b" and array.dtype.itemsize < np.dtype(np.float32).itemsize:
        array = array.astype(np.float32)  # without loss
    return array.dtype.name, hashlib.sha256(np.ascontiguousarray(array).tobytes()).digest()


def forms(array: Array) -> tuple[Array, ...]:
    """Returns an array and, if it is a matrix, its transposition."""
    return (array, array.T) if array.ndim == 2 else (array,)  # noqa: PLR2004 - a matrix


def _close(array: Array, expected: Expected, roundings: int) -> bool:
    """Whether a tensor equals a float64 value up to some roundings, perhaps transposed."""
    if array.dtype.kind in "biu":
        return False
    value = expected.value
    kind = ml_dtypes.finfo(array.dtype)  # type: ignore[no-untyped-call]  # knows bfloat16
    unit, least = float(kind.eps) / 2, float(kind.smallest_subnormal)
    allowed = roundings * (unit * np.asarray(expected.size) + least)
    allowed = np.broadcast_to(allowed, value.shape).reshape(-1)
    for form in forms(array):
        if form is not array and form.shape != value.shape:
            continue
        numbers, wanted = form.reshape(-1), value.reshape(-1)
        # In parts, since most tensors differ in the first, and temporary ones stay in the cache.
        parts = (slice(i, i + _PART) for i in range(0, len(wanted), _PART))
        if all(
            np.all(np.abs(numbers[p].astype(np.float64) - wanted[p]) <= allowed[p]) for p in parts
        ):
            return True
    return False

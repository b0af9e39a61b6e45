"""The weight audit: is every parameter of the checkpoint in the graph, bit for bit?

A single changed weight can move the outputs by less than their rounding noise, so that no
comparison of outputs can show it. Comparing the weights themselves does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from engines.contract import Array
from engines.errors import DeployError
from exporters import onnx_files
from pipeline.golden.file import Weights

_NAMED = 5  # how many names a message lists


@dataclass(frozen=True)
class Audit:
    """The comparison of a graph's weights with the checkpoint's parameters.

    Attributes:
        identical: How many parameters are in the graph bit for bit: themselves, or the weight and
            bias that a batch norm was folded into (`exporters.weight_map`).
        changed: Parameters that are in the graph under their name, with other values.
        missing: Parameters that are not in the graph, under any name.
        unaudited: Parameters that no tensor of the exported graph carried, so that the graph
            cannot be audited for them.
        unexplained: Tensors of the graph that are neither a parameter nor a constant it was
            exported with, each with its dtype, shape and size.
    """

    identical: int
    changed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unaudited: tuple[str, ...] = ()
    unexplained: tuple[str, ...] = ()

    @property
    def fault(self) -> str:
        """What is wrong, in words; "" if nothing is."""
        faults = []
        if self.changed:
            faults.append(f"weights that are not the checkpoint's: {_listed(self.changed)}")
        if self.missing:
            faults.append(f"weights that are not in the graph: {_listed(self.missing)}")
            if self.unexplained:
                faults.append(f"unexplained tensors: {_listed(self.unexplained)}")
        return "; ".join(faults)

    def __str__(self) -> str:
        parts = (self.changed, self.missing, self.unaudited)
        return f"{self.identical} of {self.identical + sum(map(len, parts))}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def digest(array: Array) -> str:
    """Returns the SHA-256 of an array's dtype, shape and values."""
    head = f"{array.dtype.name}{list(array.shape)}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


def _reached(graph: onnx.GraphProto) -> set[str]:
    """Returns the names of all values that the graph's outputs depend on."""
    makers = {output: node for node in graph.node for output in node.output}
    reached: set[str] = set()
    todo = [value.name for value in graph.output]
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += makers[name].input if name in makers else ()
    return reached


def weights_of(weight_map: Mapping[str, Array], model: onnx.ModelProto) -> Weights:
    """Returns the expected weights of a graph, for its golden file.

    Args:
        weight_map: By the name of each parameter, the tensor that carries it
            (`exporters.weight_map`).
    """
    digests = {name: digest(array) for name, array in weight_map.items()}
    held = {digest(array) for array in _initializers(model).values()}
    carried = {name: value for name, value in digests.items() if value in held}
    return Weights(
        carried,
        tuple(sorted(digests.keys() - carried.keys())),
        tuple(sorted(held - set(carried.values()))),
    )


def _initializers(model: onnx.ModelProto) -> dict[str, Array]:
    """Returns the initializers that an output depends on: an unused weight proves nothing."""
    used = _reached(model.graph)
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.name in used
    }


def audit(graph: Path, weights: Weights) -> Audit:
    """Compares a graph's initializers with its expected weights.

    Raises:
        DeployError: The file is not an ONNX graph.
    """
    return audit_model(onnx_files.read(graph), weights, graph)


def audit_model(model: onnx.ModelProto, weights: Weights, graph: Path) -> Audit:
    """Does the same as `audit`, for a model that was read from the file `graph`."""
    try:
        arrays = _initializers(model)
        digests = {name: digest(array) for name, array in arrays.items()}
    except Exception as error:  # protobuf, onnx and numpy each raise their own
        raise DeployError(f"{graph} is not an ONNX graph: {error}", "export it again") from error
    values, carried = set(digests.values()), weights.carried
    changed = sorted(name for name in carried if name in digests and digests[name] != carried[name])
    identical = [n for n, value in carried.items() if value in values and n not in changed]
    missing = set(carried) - set(identical) - set(changed)
    known = {*carried.values(), *weights.constants}
    return Audit(
        identical=len(identical),
        changed=tuple(changed),
        missing=tuple(sorted(missing)),
        unaudited=tuple(sorted(weights.uncarried)),
        unexplained=tuple(
            f"{name} {array.dtype}{list(array.shape)}, {array.nbytes:,} bytes"
            for name, array in arrays.items()
            if digests[name] not in known
        ),
    )

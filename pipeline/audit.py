"""The weight audit: is every parameter of the checkpoint in the graph, bit for bit?

A single changed weight can move the outputs by less than their rounding noise, so that no
comparison of outputs can show it. Comparing the weights themselves does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from engines.base import Array
from engines.errors import DeployError
from exporters import files


@dataclass(frozen=True)
class Audit:
    """What became of the checkpoint's parameters in a graph.

    Attributes:
        identical: How many are in the graph, bit for bit: themselves, or the weight and bias
            that a batch norm was folded into (`exporters.carriers`).
        changed: Those that are there under their name with other values.
        unaudited: Those that are not there at all, as when an exporter transposes them:
            nothing is known of them.
    """

    identical: int
    changed: tuple[str, ...]
    unaudited: tuple[str, ...]


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


def audit(graph: Path, weights: Mapping[str, str]) -> Audit:
    """Compares a graph's initializers with the digests of what carries each parameter.

    Raises:
        DeployError: The file is not an ONNX graph.
    """
    model = files.read(graph)
    try:
        # Only what an output depends on: a spare copy of a weight proves nothing.
        used = _reached(model.graph)
        found = {
            tensor.name: digest(onnx.numpy_helper.to_array(tensor))
            for tensor in model.graph.initializer
            if tensor.name in used
        }
    except Exception as error:  # protobuf, onnx and numpy each raise their own
        raise DeployError(f"{graph} is not an ONNX graph: {error}", "export it again") from error
    values = set(found.values())
    changed = sorted(name for name in weights if name in found and found[name] != weights[name])
    identical = [n for n, value in weights.items() if value in values and n not in changed]
    missing = set(weights) - set(identical) - set(changed)
    return Audit(len(identical), tuple(changed), tuple(sorted(missing)))

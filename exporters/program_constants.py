"""The constants of a torch.export program: its parameters, and what is computed from them alone."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from engines.contract import Array


class Held:
    """The parameters, buffers and constants of a program.

    Attributes:
        tensors: Their values.
        parameters: The names of those that a checkpoint has.
        names: The name of the one that each placeholder stands for.
    """

    def __init__(self, program: Any) -> None:
        signature = program.graph_signature
        tensors = {**program.state_dict, **program.constants}
        self.tensors = {n: t.detach() for n, t in tensors.items() if isinstance(t, torch.Tensor)}
        self.parameters = program.state_dict.keys()
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.names = {node: name for node, name in names.items() if name in self.tensors}
        # Node by node, since from each node on, networks with skips have very many paths back.
        self._made_of: dict[Any, frozenset[str] | None] = {}
        for node in program.graph.nodes:
            self._made_of[node] = self._parameters_of(node)

    def parameter(self, node: Any) -> str:
        """Returns the name of the parameter that an argument of a node is; "" for anything else."""
        name = self.names.get(getattr(node, "name", ""), "")
        return name if name in self.parameters else ""

    def made_of(self, value: Any) -> frozenset[str] | None:
        """Returns the parameters that an argument of a node depends on.

        None means that it also depends on something else, or is not a number.
        """
        if value is None or isinstance(value, bool | int | float):
            return frozenset()
        return self._made_of.get(value) if isinstance(value, torch.fx.Node) else None

    def _parameters_of(self, node: Any) -> frozenset[str] | None:
        """See `made_of`; the nodes that this one reads are known."""
        if node.name in self.names:
            return frozenset({self.names[node.name]} & self.parameters)
        if node.op != "call_function" or not is_constant(node):
            return None
        parts = [self._made_of[before] for before in node.all_input_nodes]
        if None in parts:
            return None
        return frozenset().union(*filter(None, parts))

    def exact(self, value: Any, otherwise: float = 0.0) -> Array:
        """Returns an argument that depends on parameters alone, in float64; `otherwise` if None."""
        if value is None or isinstance(value, bool | int | float):
            return np.array(otherwise if value is None else value, np.float64)
        array: Array = self._tensor(value).numpy()
        return array

    def _tensor(self, node: Any) -> torch.Tensor:
        if node.name in self.names:
            tensor: torch.Tensor = wide(self.tensors[self.names[node.name]])
            return tensor
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self._tensor)
        result: torch.Tensor = wide(node.target(*args, **kwargs))
        return result


def is_constant(node: Any) -> bool:
    """Whether an operator that reads constants alone gives a constant.

    One that reads nothing, such as `arange`, gives one unless it is random or leaves its memory as
    it is.
    """
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]  # as of `split`
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        return False
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return bool(node.all_input_nodes) or not (random or "empty" in str(node.target))


def wide(value: Any) -> Any:
    """Returns a tensor, or a list of tensors, in float64 where it has smaller floats."""
    if isinstance(value, list | tuple):
        return [wide(part) for part in value]
    return value.double() if value.is_floating_point() else value


def array_of(tensor: torch.Tensor) -> Array:
    """Returns a tensor's values, those of bfloat16 included."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:  # numpy has it only through ml_dtypes
        bits: Array = tensor.contiguous().view(torch.int16).numpy()
        return bits.view(ml_dtypes.bfloat16)
    array: Array = tensor.numpy()
    return array

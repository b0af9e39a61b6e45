"""Finds operators that mix a program's half type with float32, which PyTorch cannot run.

torch.export does not run a program on numbers, so it traces such operators without an error.
"""

from __future__ import annotations

from typing import Any

import torch

from engines.errors import DeployError
from exporters import trace_errors

_ATEN = torch.ops.aten
# Operators whose tensors must have one type; most others take the wider one.
_ONE_TYPE = {
    getattr(_ATEN, name)
    for name in (
        *("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "einsum", "bilinear"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d"),
        *("conv_transpose3d", "convolution", "gru", "lstm", "rnn_tanh", "rnn_relu"),
        *("index_put", "index_put_", "scaled_dot_product_attention"),
    )
}


def check_types(program: Any, dtype: torch.dtype) -> None:
    """Raises DeployError if an operator that takes one type gets two.

    The message names the line of the model, and the line that made the tensor of the other type.

    Args:
        program: A torch.export program.
        dtype: The half type of its weights.
    """
    for node in program.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        read = [other for other in node.all_input_nodes if _float_type(other) is not None]
        others = [other for other in read if _float_type(other) != dtype]
        if packet not in _ONE_TYPE or not others or len(others) == len(read):
            continue
        operator = str(packet).removeprefix("aten.")
        other = _name(_float_type(others[0]))
        raise DeployError(
            f"the model cannot be computed in {_name(dtype)}: {operator} gets {other} as well"
            f"{trace_errors.at_line(trace_errors.line_of(node))}; that comes from"
            f" {_source(program, others[0])}",
            "make tensors in the type of the others, as in torch.zeros(..., dtype=x.dtype); cast"
            " back what is computed in another type, as in y.to(x.dtype)",
        )


def _source(program: Any, node: Any) -> str:
    """Returns what gave a value its type, in words."""
    origin = _origin(node)
    constant = program.graph_signature.inputs_to_lifted_tensor_constants.get(origin.name)
    if constant is not None:
        return f"{constant}, which is no buffer, and so is not cast"
    operator = str(getattr(origin.target, "overloadpacket", origin.target)).removeprefix("aten.")
    return f"{operator}{trace_errors.at_line(trace_errors.line_of(origin))}"


def _origin(node: Any) -> Any:
    """Returns the node that gave a value its type: no value that it reads has it."""
    dtype = _float_type(node)
    pending, visited = [node], set()
    while pending:
        candidate = pending.pop()
        visited.add(candidate)
        sources = [other for other in candidate.all_input_nodes if _float_type(other) == dtype]
        if not sources:
            return candidate
        pending += [other for other in sources if other not in visited]
    return node


def _float_type(node: Any) -> torch.dtype | None:
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.dtype
    return None


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")

"""Parts of a program are computed in float32, where its half type cannot hold their values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from exporters.wide_run import is_half

_COPY = torch.ops.aten._to_copy.default
_METADATA = torch.ops.aten._assert_tensor_metadata.default


def changes_in_place(program: Any) -> bool:
    """Whether a program changes tensors in place: then another node may read what one gives."""
    schemas = (getattr(node.target, "_schema", None) for node in program.graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)


def widen(
    program: Any,
    nodes: Collection[Any],
    dtype: torch.dtype,
    originals: Mapping[str, torch.Tensor],
) -> None:
    """Changes a program, so that it computes nodes and their users in float32.

    The values of `nodes` stay in float32; those of their users are cast back to `dtype`.

    Args:
        program: A torch.export program that changes no tensor in place.
        nodes: Nodes of its graph whose values `dtype` cannot hold.
        dtype: float16 or bfloat16.
        originals: By name, parameters and buffers as they were before they were cast to it.
    """
    graph, wide = program.graph, set(nodes)
    _restore_weights(program, wide, dtype, originals)
    casts: dict[Any, Any] = {}  # by node, its value in float32
    halves = {node for node in graph.nodes if is_half(node, dtype)}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is _METADATA:
            if node.args[0] in wide:
                graph.erase_node(node)
            continue
        tuples = isinstance(node.meta.get("val"), tuple | list)
        reads_wide = any(before in wide for before in node.all_input_nodes)
        if node not in wide and not reads_wide:
            continue
        for before in node.all_input_nodes:
            if before in halves and before not in wide:
                if before not in casts:
                    with graph.inserting_after(before):
                        casts[before] = _cast(graph, before, torch.float32)
                node.replace_input_with(before, casts[before])
        node.args = tuple(_wide_type(arg, dtype) for arg in node.args)
        node.kwargs = {name: _wide_type(arg, dtype) for name, arg in node.kwargs.items()}
        if tuples:
            wide.add(node)  # what is taken out of it is cast instead
            node.meta["val"] = type(node.meta["val"])(map(_in_float32, node.meta["val"]))
            continue
        if node not in halves:
            continue
        node.meta["val"] = _in_float32(node.meta["val"])
        if node not in wide:
            with graph.inserting_after(node):
                narrow = _cast(graph, node, dtype)
            node.replace_all_uses_with(
                narrow, delete_user_cb=lambda user, cast=narrow: user is not cast
            )
            halves.add(narrow)
    graph.lint()
    program.graph_module.recompile()


def _restore_weights(
    program: Any,
    wide: set[Any],
    dtype: torch.dtype,
    originals: Mapping[str, torch.Tensor],
) -> None:
    """Gives parameters their float32 values where nothing reads them in the half type."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    for node in program.graph.nodes:
        name = names.get(node.name)
        if name is None or name not in originals or not is_half(node, dtype):
            continue
        narrow = [
            user
            for user in node.users
            if user not in wide and not any(before in wide for before in user.all_input_nodes)
        ]
        if node not in wide and (narrow or not node.users):
            continue
        value = originals[name].detach().float()
        parameter = isinstance(program.state_dict.get(name), torch.nn.Parameter)
        holder = program.state_dict if name in program.state_dict else program.constants
        holder[name] = torch.nn.Parameter(value, requires_grad=False) if parameter else value
        node.meta["val"] = _in_float32(node.meta["val"])
        wide.add(node)


def _cast(graph: Any, node: Any, dtype: torch.dtype) -> Any:
    cast = graph.call_function(_COPY, (node,), {"dtype": dtype})
    cast.meta = {key: value for key, value in node.meta.items() if key != "val"}
    value = node.meta["val"]
    with value.fake_mode:
        cast.meta["val"] = value.to(dtype)
    return cast


def _in_float32(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.float16, torch.bfloat16):
        return value
    with value.fake_mode:  # type: ignore[attr-defined]  # values of programs are fake tensors
        return value.float()


def _wide_type(value: Any, dtype: torch.dtype) -> Any:
    return torch.float32 if value is dtype else value

"""A program of a half precision, run with that precision's digits and float32's range.

Rounding and range are two questions. Here each value is rounded to as many digits as its type has,
and none overflows or vanishes: what differs from the float64 run is rounding alone. The largest and
smallest values can be watched on the way, so that what its type cannot hold is known by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import OutputKind

HALF_TYPES = (torch.float16, torch.bfloat16)
_ATEN = torch.ops.aten
_ASSERTIONS = ("_assert", "sym_constrain")
_CASTS = (_ATEN.to.dtype, _ATEN._to_copy.default)
_ATTENTION = _ATEN.scaled_dot_product_attention.default
# Bits of mantissa that float32 has and float16 has not, and numbers to round at a time.
_DROPPED, _BLOCK = 13, 1 << 16
# They move numbers that are rounded already, or pick some.
_MOVES = {
    getattr(_ATEN, name)
    for name in (
        *("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("transpose", "permute", "t", "expand", "slice", "select", "cat", "stack", "clone"),
        *("relu", "relu_", "max_pool2d", "contiguous", "repeat", "index", "gather", "flip"),
    )
}


class WideRun(nn.Module):
    """A torch.export program whose float16 or bfloat16 values are held in float32.

    Attributes:
        dtype: The half type.
        pixels: See `exporters.module.Served`.
    """

    def __init__(
        self,
        program: Any,
        dtype: torch.dtype,
        pixels: int = 0,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Prepares a program.

        Args:
            weights: By name, values of parameters and buffers instead of the program's own.
        """
        super().__init__()
        self.dtype, self.pixels = dtype, pixels
        self._nodes = list(program.graph.nodes)
        signature = program.graph_signature
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        tensors = {**program.constants, **program.state_dict, **(weights or {})}
        self._held: dict[str, str] = {}  # by placeholder, the buffer that it reads
        for node in self._nodes:
            if node.op == "placeholder" and names.get(node.name) in tensors:
                self._held[node.name] = f"tensor_{len(self._held)}"
                self.register_buffer(self._held[node.name], tensors[names[node.name]].detach())
        self._last_uses = _last_uses(self._nodes)
        # A program also returns the new values of buffers that it changes.
        self._returned = [
            index
            for index, spec in enumerate(signature.output_specs)
            if spec.kind is OutputKind.USER_OUTPUT
        ]

    def __deepcopy__(self, memo: dict[int, Any]) -> WideRun:
        """Copies the tensors; the program is shared, since nothing changes it."""
        copied = WideRun.__new__(WideRun)
        memo[id(self)] = copied
        nn.Module.__init__(copied)
        for name in ("dtype", "pixels", "_nodes", "_held", "_last_uses", "_returned"):
            setattr(copied, name, getattr(self, name))
        for name, buffer in self.named_buffers():
            copied.register_buffer(name, copy.deepcopy(buffer, memo))
        return copied

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Takes and gives what the program does: tensors whose first axis is the batch."""
        return self.watch(inputs, None)

    def watch(
        self, inputs: Iterable[torch.Tensor], observe: Callable[[Any, torch.Tensor], None] | None
    ) -> tuple[torch.Tensor, ...]:
        """Runs the program and shows each value of the half type before it is rounded.

        Args:
            observe: Called with a node of the program and its value, in float32, unrounded; for an
                attention also with the sizes of its scores.
        """
        values: dict[Any, Any] = {}
        following = iter(inputs)
        for node in self._nodes:
            if node.op == "output":
                return tuple(values[node.args[0][index]] for index in self._returned)
            if node.op == "placeholder":
                held = self._held.get(node.name)
                tensor = next(following) if held is None else self.get_buffer(held)
                values[node] = tensor.float() if tensor.dtype == self.dtype else tensor
                continue
            if any(word in str(node.target) for word in _ASSERTIONS):
                continue
            args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            value = node.target(*map(self._wide, args), **self._wide_of(kwargs))
            if node.target in _CASTS and value is args[0]:
                value = value.clone()  # in the half type it would be another tensor
            if is_half(node, self.dtype):
                if 0 in value.stride():
                    value = value.clone()  # an expanded tensor cannot be rounded in place
                if observe is not None:
                    if node.target is _ATTENTION:
                        observe(node, _scores(*args, **kwargs))
                    observe(node, value)
                if getattr(node.target, "overloadpacket", None) not in _MOVES:
                    value = round_to(value, self.dtype)
            values[node] = value
            for unused in self._last_uses.get(node, ()):
                del values[unused]
        raise AssertionError("a program without an output")

    def _wide(self, value: Any) -> Any:
        return torch.float32 if value is self.dtype else value

    def _wide_of(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._wide(value) for name, value in kwargs.items()}


def is_half(node: Any, dtype: torch.dtype) -> bool:
    """Whether the value of a node of a program is a tensor of a type."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype == dtype


def round_to(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounds a float32 tensor to the digits of a half type, whatever its exponents.

    Returns:
        The tensor itself, rounded in place, if it is contiguous; otherwise a new one.
    """
    if tensor.dtype != torch.float32:  # such as an index that an operator gives beside values
        return tensor
    tensor = tensor.contiguous()
    if dtype == torch.bfloat16:  # which has float32's exponents
        return tensor.copy_(tensor.bfloat16())
    # To the nearest, ties to even: of float32's 24 bits of mantissa, 13 are dropped. In blocks that
    # stay in a cache, this takes a tenth of the time of float arithmetic on all numbers.
    for block in tensor.view(-1).view(torch.int32).split(_BLOCK):  # type: ignore[no-untyped-call]
        odd = block >> _DROPPED
        odd &= 1
        odd += (1 << (_DROPPED - 1)) - 1
        block.add_(odd).bitwise_and_(-(1 << _DROPPED))
    return tensor


def _scores(
    query: torch.Tensor, key: torch.Tensor, *_: Any, scale: float | None = None, **_more: Any
) -> torch.Tensor:
    """Returns the sizes of an attention's scores, which runtimes hold in the half type.

    Sizes below 1 are given as 1: scores that vanish are no loss, since a softmax takes differences.
    """
    if query.ndim > 3 and key.shape[-3] != query.shape[-3]:  # noqa: PLR2004
        # With enable_gqa, several heads of queries share one of keys.
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return scores.abs().clamp_min(1.0)


def _last_uses(nodes: list[Any]) -> dict[Any, list[Any]]:
    """Returns by node the values that are not needed any more after it."""
    last: dict[Any, Any] = {}
    for node in nodes:
        for value in node.all_input_nodes:
            last[value] = node
    uses: dict[Any, list[Any]] = {}
    for value, node in last.items():
        if node.op == "call_function" and not any(w in str(node.target) for w in _ASSERTIONS):
            uses.setdefault(node, []).append(value)
    return uses

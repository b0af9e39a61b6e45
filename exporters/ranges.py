"""What leaves the range of float16 or bfloat16: values that overflow, and values that vanish.

The outputs cannot tell: a square that overflows makes `x * rsqrt(mean(x * x))` zero, which looks
like any other output. So the values of every operator are checked, on the golden inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from exporters import name_of, trace_errors
from exporters.half_range import CONSTANT_ERROR, HEADROOM, LOST_BITS
from exporters.wide_run import WideRun, is_half

_ATEN = torch.ops.aten
# Operators whose numbers become constants of the graph, in the type of its tensors. The epsilon of
# a norm is none of them: it stays a float, and what is computed with it is in float32.
_WITH_CONSTANTS = {
    getattr(_ATEN, name)
    for name in (
        *("add", "sub", "rsub", "mul", "div", "clamp", "clamp_min", "clamp_max", "masked_fill"),
        *("where", "full", "full_like", "add_", "sub_", "mul_", "div_", "clamp_", "clamp_min_"),
        *("masked_fill_", "fill", "fill_", "scalar_tensor", "fmod", "remainder", "hardtanh"),
    )
}
# They turn a small number into a large one: if it vanishes, they give another number.
_INVERSES = {
    getattr(_ATEN, name) for name in ("rsqrt", "reciprocal", "log", "log2", "log10", "sqrt")
}


_NAMES = {"_native_batch_norm_legit_no_training": "batch_norm"}


@dataclass(frozen=True)
class OutOfRange:
    """A value that its type cannot hold.

    Attributes:
        node: The node of the program that gives it.
        parameter: The name of the parameter or buffer that it is, or "".
        why: What happens, in words, such as "reaches 1.2e+06 (fp16 holds 6.55e+04)".
    """

    node: Any
    parameter: str
    why: str

    @property
    def name(self) -> str:
        """Its operator and module, such as "mul of network.norm: Norm", or that of a parameter."""
        if self.parameter:
            return self.parameter
        module = trace_errors.module_of(self.node)
        node = self.node
        while node.target is operator.getitem:  # one of several values
            node = node.args[0]
        operation = str(node.target).removeprefix("aten.").partition(".")[0]
        operation = _NAMES.get(operation, operation)
        return f"{operation} of {module}" if module else operation

    def __str__(self) -> str:
        line = trace_errors.shortened(trace_errors.line_of(self.node))
        return f"{self.name} {self.why}" + (f", at {line}" if line else "")


def find(
    program: Any,
    dtype: torch.dtype,
    originals: Mapping[str, torch.Tensor],
    run: Callable[[Callable[..., tuple[torch.Tensor, ...]]], object],
) -> tuple[OutOfRange, ...]:
    """Returns the values of a program that leave the range of its half type.

    Args:
        program: A torch.export program whose values are of `dtype` where they can be.
        originals: By name, parameters and buffers as they were before they were cast.
        run: Calls what it is given with the inputs to look at, batch by batch.
    """
    limits = torch.finfo(dtype)
    least = limits.tiny * 2.0**-LOST_BITS
    # With its own weights, of which those that overflow are infinite, nothing else could be seen.
    wide = WideRun(program, dtype, weights=originals)
    largest: dict[Any, float] = {}
    vanishing: dict[Any, float] = {}

    def observe(node: Any, value: torch.Tensor) -> None:
        if not value.is_floating_point() or not value.numel():
            return
        size = value.abs()
        if not size.amax().isfinite():  # as of a mask
            size = torch.where(size.isfinite(), size, 0)
        rows = size.flatten(1).amax(1) if size.ndim > 1 else size.amax().reshape(1)
        largest[node] = max(largest.get(node, 0.0), float(rows.max()))
        if limits.tiny < torch.finfo(torch.bfloat16).tiny * 2:
            return  # it has the range of float32
        seen = rows
        if any(_inverts(user, node) for user in node.users):
            seen = size.flatten()
        small = seen[(seen > 0) & (seen < least)]
        if small.numel():
            vanishing[node] = float(small.min())

    with torch.no_grad():
        run(lambda *inputs: wide.watch(inputs, observe))
    found = {
        node: f"reaches {peak:.3g} ({_name(dtype)} holds {limits.max:.3g})"
        for node, peak in largest.items()
        if peak > limits.max * HEADROOM
    }
    for node, size in vanishing.items():
        found.setdefault(
            node, f"gives {size:.2g} ({_name(dtype)} loses digits below {limits.tiny:.2g})"
        )
    for node, constant in _constants(program, dtype):
        found.setdefault(node, f"takes the constant {constant:g}, which {_name(dtype)} cannot hold")
    for node, why in _weights(program, dtype, originals):
        found.setdefault(node, why)
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    return tuple(
        OutOfRange(node, names.get(node.name, ""), found[node])
        for node in program.graph.nodes
        if node in found
    )


def unfit_rows(
    wide: WideRun, inputs: Sequence[torch.Tensor], rows: Iterable[int]
) -> tuple[int, ...]:
    """Returns those of some rows on which the program has values that its type cannot hold."""
    limits = torch.finfo(wide.dtype)
    unfit: list[int] = []
    for row in rows:

        def observe(_node: Any, value: torch.Tensor, row: int = row) -> None:
            if value.is_floating_point() and value.numel():
                size = value.abs()
                peak = float(torch.where(size.isfinite(), size, 0).max())
                if peak > limits.max or 0 < peak < limits.tiny * 2.0**-LOST_BITS:
                    unfit.append(row)

        # Twice, since a program is traced with two rows, and some take a single one for another.
        with torch.no_grad():
            wide.watch([tensor[[row, row]] for tensor in inputs], observe)
    return tuple(dict.fromkeys(unfit))


def _inverts(user: Any, node: Any) -> bool:
    """Whether a node takes the logarithm, root or inverse of a value."""
    packet = getattr(user.target, "overloadpacket", None)
    if packet is _ATEN.div:
        return len(user.args) > 1 and user.args[1] is node
    return packet in _INVERSES


def _constants(program: Any, dtype: torch.dtype) -> list[tuple[Any, float]]:
    """Returns nodes and the numbers among their arguments that the type cannot hold."""
    lifted = program.graph_signature.inputs_to_lifted_tensor_constants
    scalars = {
        name: float(program.constants[target])
        for name, target in lifted.items()
        if target in program.constants
        and program.constants[target].numel() == 1
        and program.constants[target].is_floating_point()
    }
    lost = []
    for node in program.graph.nodes:
        packet = getattr(node.target, "overloadpacket", None)
        if packet not in _WITH_CONSTANTS or not is_half(node, dtype):
            continue
        for arg in node.args:
            number = scalars.get(getattr(arg, "name", ""), arg)
            if isinstance(number, float) and _lost(number, dtype):
                lost.append((node, number))
    return lost


def _lost(number: float, dtype: torch.dtype) -> bool:
    if not torch.tensor(number).isfinite() or number == 0:
        return False
    held = float(torch.tensor(number, dtype=torch.float64).to(dtype))
    return not abs(held - number) <= CONSTANT_ERROR * abs(number)


def _weights(
    program: Any, dtype: torch.dtype, originals: Mapping[str, torch.Tensor]
) -> list[tuple[Any, str]]:
    """Returns placeholders of parameters and buffers that the type cannot hold, and why."""
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    limits, lost = torch.finfo(dtype), []
    for node in program.graph.nodes:
        original = originals.get(names.get(node.name, ""))
        if original is None or not is_half(node, dtype) or not original.numel():
            continue
        size = original.abs()
        peak = float(torch.where(size.isfinite(), size, 0).max())
        if peak > limits.max:
            lost.append((node, f"holds {peak:.3g} ({_name(dtype)} holds {limits.max:.3g})"))
        elif peak > 0 and not original.to(dtype).any():
            lost.append((node, f"holds {peak:.2g} at most, which vanishes in {_name(dtype)}"))
    return lost


def _name(dtype: torch.dtype) -> str:
    return name_of(str(dtype).removeprefix("torch."))

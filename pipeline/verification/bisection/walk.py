"""Runs a program in several ways at once, beside the values that an engine computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from engines.contract import Array
from exporters.wide_run import HALF_TYPES, is_half, round_to
from pipeline.golden import rounding
from pipeline.golden.float64 import in_float64
from pipeline.verification.bisection.windows import Windows

_MORE_RUNS = 3  # with random rounding, to measure the noise
# Operators that assert dtypes, which differ in float64.
CHECKS = ("aten._assert", "sym_constrain")


@dataclass
class _Run:
    """One way of computing the program, node by node.

    Attributes:
        context: Entered around each node.
        convert: Returns a weight as this run uses it: in its dtype, randomly rounded or not.
        rounds: Values of half types are held in float32 and rounded, as in `exporters.wide_run`.
        values: By node, the values that later nodes need.
    """

    context: Callable[[], AbstractContextManager[Any]]
    convert: Callable[[torch.Tensor], torch.Tensor]
    rounds: bool = False
    values: dict[Any, Any] = field(default_factory=dict)

    def hold(self, node: Any, tensor: torch.Tensor, *, weight: bool) -> None:
        """Takes the value of a placeholder; inputs are exact, and so never moved."""
        if weight or not self.rounds:
            tensor = self.convert(tensor)
        self.values[node] = tensor.float() if tensor.dtype in HALF_TYPES else tensor

    def compute(self, node: Any) -> None:
        """Computes the value of a node from those before it."""
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), self.values.__getitem__)
        with torch.inference_mode(), self.context():
            value = node.target(*map(_wide, args), **{k: _wide(v) for k, v in kwargs.items()})
            for half in HALF_TYPES:
                if self.rounds and is_half(node, half):
                    value = round_to(value.clone(), half)  # it may be another node's
        self.values[node] = value


def _wide(value: Any) -> Any:
    """Returns an argument of an operator: float32 for a half type."""
    return torch.float32 if isinstance(value, torch.dtype) and value in HALF_TYPES else value


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _to_float64(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.float64) if tensor.is_floating_point() else tensor


def _moved(seed: int) -> Callable[[torch.Tensor], torch.Tensor]:
    random = torch.Generator().manual_seed(seed)

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        copied = tensor.clone()
        if tensor.is_floating_point():
            rounding.move(copied, random)
        return copied

    return convert


def _runs(program: Any) -> list[_Run]:
    """Returns two runs in float64, then those at the precision."""
    runs = [_Run(in_float64, _to_float64) for _ in range(2)]
    halves = any(is_half(node, half) for node in program.graph.nodes for half in HALF_TYPES)
    for seed in range(1 + _MORE_RUNS):
        convert = _moved(seed) if seed else _as_it_is
        context = nullcontext if halves else lambda seed=seed: rounding.approximate(seed)
        runs.append(_Run(context, convert, rounds=True))
    return runs


def walk(
    program: Any, feeds: Mapping[str, Array], known: Mapping[str, str], engine: Windows
) -> Iterator[tuple[Any, tuple[Array, Array, Array, list[Array]]]]:
    """Runs the program in several ways at once, node by node.

    Yields:
        Each node whose value the engine computes, with four things: the engine's value; the
        float64 value of the whole model; the float64 value computed from the engine's earlier
        values; and PyTorch's values from these at the precision, each rounded differently.
    """
    runs = _runs(program)
    signature = program.graph_signature
    held = {**program.state_dict, **program.constants}
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    inputs = iter(feeds.values())
    nodes = [n for n in program.graph.nodes if not any(word in str(n.target) for word in CHECKS)]
    users = {node: len(set(node.users).intersection(nodes)) for node in nodes}
    for node in nodes:
        if node.op == "placeholder":
            weight = node.name in names
            tensor = held[names[node.name]] if weight else torch.from_numpy(next(inputs))
            for run in runs:
                run.hold(node, tensor.detach(), weight=weight)
        if node.op != "call_function":
            continue
        for run in runs:
            run.compute(node)
        if node.name in known:
            value = engine[known[node.name]]
            values = [_to_array(run.values[node]) for run in runs]
            yield node, (value, values[0], values[1], values[2:])
            if value.shape == values[0].shape:
                for run in runs[1:]:
                    kind = run.values[node].dtype
                    exact = value.astype(np.float64) if value.dtype.kind == "f" else value
                    run.values[node] = torch.from_numpy(exact).to(kind)
        for before in node.all_input_nodes:
            users[before] -= 1
            if not users[before]:
                for run in runs:
                    del run.values[before]


def _to_array(tensor: torch.Tensor) -> Array:
    tensor = tensor.detach()
    array: Array = (tensor.double() if tensor.is_floating_point() else tensor).numpy()
    return array

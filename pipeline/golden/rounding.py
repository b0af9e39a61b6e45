"""Running a model with its rounding errors drawn anew, to learn how large they may be.

Monte Carlo arithmetic (Parker, Pierce and Eggert, 2000) rounds at random instead of to the
nearest number, several times; the spread of the results is what rounding does to them. Here the
weights are rounded at random, which moves every sum that they are part of, and the functions
that libraries approximate are off by what their approximations allow themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exporters import PRECISIONS

if TYPE_CHECKING:
    from exporters.module import Served
    from exporters.wide_run import WideRun

    # A model as it is exported, at a precision.
    AtPrecision = Served | WideRun

# The share of weights that move to a neighbouring number: what a displacement by up to half a
# unit, evenly distributed, and rounding at random come to.
_MOVED = 0.25
# Weights to move at a time: of a large tensor, the copies that this takes would not fit.
_AT_ONCE = 1 << 22
_UNIT = PRECISIONS["fp32"].unit
_ATEN = torch.ops.aten
# Of these, ONNX Runtime's approximations (and the formulas that exporters write out) are right
# to a unit of the range of the function, 1, not of its value: near zero, all digits may differ.
_RANGE = {
    *(_ATEN.sigmoid.default, _ATEN.sigmoid_.default, _ATEN.tanh.default, _ATEN.tanh_.default),
    *(_ATEN.elu.default, _ATEN.elu_.default, _ATEN.softplus.default),
}
# These are the argument times such a function.
_ARGUMENT = {
    *(_ATEN.silu.default, _ATEN.silu_.default, _ATEN.gelu.default, _ATEN.gelu_.default),
    *(_ATEN.mish.default, _ATEN.mish_.default),
}
# PyTorch adds up in pairs, engines often one by one: on an image of one colour, whose numbers
# are all the same, each addition errs the same way, and a mean of 22,500 lost 8 of its 24 bits.
_SUMS = {_ATEN.mean.dim, _ATEN.sum.dim_IntList}


@contextmanager
def at_random(served: AtPrecision, seed: int) -> Iterator[AtPrecision]:
    """Gives a copy of a module whose rounding errors are drawn at random.

    To be run before the context ends, and without gradients.
    """
    moved = copy.deepcopy(served)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*moved.parameters(), *moved.buffers()):
            if tensor.is_floating_point():
                move(tensor, random)
    # Beside the rounding of a smaller type, approximations in float32 are nothing.
    exactly = served.dtype.itemsize < torch.float32.itemsize
    with nullcontext() if exactly else approximate(seed):
        yield moved


def approximate(seed: int) -> TorchDispatchMode:
    """Returns a mode in which approximated functions are off, one way or the other.

    And sums are added up one by one.
    """
    return _Approximate(1 if seed % 2 else -1)


def move(tensor: torch.Tensor, random: torch.Generator) -> None:
    """Moves a share of a tensor's numbers to a neighbouring one of their type, in place."""
    rows = tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
    count = max(1, _AT_ONCE // max(1, rows[:1].numel()))
    for part in rows.split(count):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        drawn = torch.rand(part.shape, generator=random)
        for chosen, to in ((drawn < _MOVED / 2, torch.inf), (drawn > 1 - _MOVED / 2, -torch.inf)):
            moved = torch.nextafter(part, torch.full_like(part, to))
            part.copy_(torch.where(chosen, moved, part))


class _Approximate(TorchDispatchMode):
    """Adds to approximated functions the error they may have; in float32, as all compute them.

    And adds up one by one. The errors go the same way everywhere, since an approximation errs the
    same way wherever it is given the same number, and so they add up: on an image of one colour,
    those of all pixels.
    """

    def __init__(self, way: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._way = way

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _ATEN.adaptive_avg_pool2d.default and [*args[1]] == [1, 1]:
            func, args = _ATEN.mean.dim, (args[0], (-2, -1), True)  # what it comes to
        if func not in _RANGE | _ARGUMENT | _SUMS or args[0].dtype != torch.float32:
            return func(*args, **(kwargs or {}))
        if func in _SUMS:
            return _one_by_one(func, *args, **(kwargs or {}))
        size = args[0].abs() if func in _ARGUMENT else torch.ones_like(args[0])
        return func(*args, **(kwargs or {})).add_(size, alpha=self._way * _UNIT)


def _one_by_one(
    func: Any, tensor: torch.Tensor, axes: Sequence[int] | None, keep: bool = False, **more: Any
) -> torch.Tensor:
    """Returns a sum or mean over axes whose terms are added in their order."""
    moved = sorted(axis % tensor.ndim for axis in axes or range(tensor.ndim))
    terms = tensor.movedim(moved, [*range(len(moved))]).flatten(0, len(moved) - 1).contiguous()
    # Over the slowest axis, numpy adds row to row; over the fastest, in pairs.
    total = torch.from_numpy(np.asarray(np.add.reduce(terms.cpu().numpy(), axis=0)))
    if func is _ATEN.mean.dim:
        total = total / len(terms)
    for axis in moved if keep else ():
        total = total.unsqueeze(axis)
    return total.to(tensor.device, more.get("dtype"))

"""Runs a model with random rounding errors, to measure how large they may be.

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

# The share of weights that move to a neighbouring number. A weight displaced by up to half a unit,
# evenly distributed, and then rounded at random moves with this probability.
_MOVED_SHARE = 0.25
# Weights to move at a time: the temporary copies of a large tensor would not fit in memory.
_AT_ONCE = 1 << 22
_UNIT = PRECISIONS["fp32"].unit
_ATEN = torch.ops.aten
# Functions that ONNX Runtime approximates (or exporters write out as formulas) to a unit of their
# range, 1, not to a unit of their value: near zero, all digits may differ.
_RANGE = {
    *(_ATEN.sigmoid.default, _ATEN.sigmoid_.default, _ATEN.tanh.default, _ATEN.tanh_.default),
    *(_ATEN.elu.default, _ATEN.elu_.default, _ATEN.softplus.default),
}
# Functions that are their argument times a function of _RANGE.
_ARGUMENT = {
    *(_ATEN.silu.default, _ATEN.silu_.default, _ATEN.gelu.default, _ATEN.gelu_.default),
    *(_ATEN.mish.default, _ATEN.mish_.default),
}
# PyTorch adds up in pairs, engines often one by one. On an image of one colour, whose numbers are
# all equal, each addition then errs the same way: a mean of 22,500 numbers lost 8 of its 24 bits.
_SUMS = {_ATEN.mean.dim, _ATEN.sum.dim_IntList}


@contextmanager
def at_random(served: AtPrecision, seed: int) -> Iterator[AtPrecision]:
    """Gives a copy of a module whose rounding errors are drawn at random.

    Run it inside the context, and without gradients.
    """
    moved = copy.deepcopy(served)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*moved.parameters(), *moved.buffers()):
            if tensor.is_floating_point() or tensor.is_complex():
                move(torch.view_as_real(tensor) if tensor.is_complex() else tensor, random)
    # Beside the rounding of a smaller type, approximations in float32 are nothing.
    exactly = served.dtype.itemsize < torch.float32.itemsize
    with nullcontext() if exactly else approximate(seed):
        yield moved


def approximate(seed: int) -> TorchDispatchMode:
    """Returns a mode that gives approximated functions their error, and adds up one by one.

    Args:
        seed: The error is added if it is odd, and subtracted if it is even.
    """
    return _Approximate(1 if seed % 2 else -1)


def move(tensor: torch.Tensor, random: torch.Generator) -> None:
    """Moves a share of a tensor's numbers to a neighbouring number of its dtype, in place.

    Zeros stay, since they are exact: biases of new weights, pruned weights. Their neighbours are
    subnormal numbers, with which processors compute slowly.
    """
    rows = tensor.unsqueeze(0) if tensor.ndim == 0 else tensor
    count = max(1, _AT_ONCE // max(1, rows[:1].numel()))
    for part in rows.split(count):  # type: ignore[no-untyped-call]  # torch leaves it untyped
        drawn = torch.rand(part.shape, generator=random).sub_(0.5)
        way = drawn.div_(0.5 - _MOVED_SHARE / 2).trunc_()  # -1, 0 or 1
        towards = way.mul_(0.5).add_(1) * part  # a number further in that way
        torch.nextafter(part, towards.to(part.dtype), out=part)


class _Approximate(TorchDispatchMode):
    """Gives approximated functions the error they may have, and adds up sums one by one.

    Only in float32, in which all libraries compute these functions. All errors have the same sign,
    since an approximation has the same error wherever it gets the same number. So they add up: on
    an image of one colour, those of all pixels.
    """

    def __init__(self, way: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._way = way

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _ATEN.adaptive_avg_pool2d.default and [*args[1]] == [1, 1]:
            func, args = _ATEN.mean.dim, (args[0], (-2, -1), True)  # equivalent
        if func not in _RANGE | _ARGUMENT | _SUMS or args[0].dtype != torch.float32:
            return func(*args, **(kwargs or {}))
        if func in _SUMS:
            return _one_by_one(func, *args, **(kwargs or {}))
        size = args[0].abs() if func in _ARGUMENT else torch.ones_like(args[0])
        return func(*args, **(kwargs or {})).add_(size, alpha=self._way * _UNIT)


def _one_by_one(
    func: Any, tensor: torch.Tensor, axes: Sequence[int] | None, keep: bool = False, **more: Any
) -> torch.Tensor:
    """Returns a sum or mean over axes, with the terms added one by one."""
    moved = sorted(axis % tensor.ndim for axis in axes or range(tensor.ndim))
    terms = tensor.movedim(moved, [*range(len(moved))]).flatten(0, len(moved) - 1).contiguous()
    # numpy adds row by row over the slowest axis, but in pairs over the fastest.
    total = torch.from_numpy(np.asarray(np.add.reduce(terms.cpu().numpy(), axis=0)))
    if func is _ATEN.mean.dim:
        total = total / len(terms)
    for axis in moved if keep else ():
        total = total.unsqueeze(axis)
    return total.to(tensor.device, more.get("dtype"))

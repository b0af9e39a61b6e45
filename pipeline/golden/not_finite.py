"""Names the operator and the line of a model that first give NaN or infinity."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from exporters import trace_errors

if TYPE_CHECKING:
    from pipeline.golden.rounding import AtPrecision


def first_operator(served: AtPrecision, inputs: Sequence[torch.Tensor], *, nan: bool) -> str:
    """Returns the first operator that gives NaN, or infinity, from values without it, in words.

    Args:
        inputs: Rows on which the outputs have NaN or infinity.
        nan: Look for NaN; else for infinity.

    Returns:
        Such as ": exp gives it first, at model.py:7 in forward: y = x.exp()"; "" if no single
        operator does.
    """
    watch = _Watch(torch.isnan if nan else torch.isinf)
    with torch.inference_mode(), watch:
        served(*(tensor.clone() for tensor in inputs))
    return f": {watch.found}" if watch.found else ""


class _Watch(TorchDispatchMode):
    def __init__(self, test: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._test = test
        self.found = ""

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = not self.found and self._any((args, kwargs))
        result = func(*args, **(kwargs or {}))
        if not self.found and not before and self._any(result):
            line = trace_errors.at_line(trace_errors.place(traceback.extract_stack()))
            name = str(func.overloadpacket).removeprefix("aten.")
            self.found = f"{name} gives it first{line}"
        return result

    def _any(self, values: Any) -> bool:
        return any(
            value.is_floating_point() and bool(self._test(value).any())
            for value in _pytree.tree_leaves(values)
            if isinstance(value, torch.Tensor)
        )

"""Runs a model in float64, even where it sets smaller dtypes itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from engines import hardware

_WIDER = {
    **dict.fromkeys((torch.float32, torch.float16, torch.bfloat16), torch.float64),
    **dict.fromkeys((torch.complex64, torch.complex32), torch.complex128),
}


class _Float64(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Replaces smaller dtypes in the arguments of operations by float64 or complex128."""

    def __torch_dispatch__(
        self, func: Any, _types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return func(*map(_widened, args), **named)


def _widened(value: Any) -> Any:
    return _WIDER.get(value, value) if isinstance(value, torch.dtype) else value


@contextmanager
def in_float64() -> Iterator[None]:
    """Runs its body in float64, even where a model sets smaller dtypes itself.

    It uses all CPUs. Their number changes the last digits of sums, far below any limit.
    """
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(hardware.available_cpus())
    try:
        with _Float64():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(before)
        torch.set_num_threads(threads)

"""Typing a module: fp16 and bf16 by its own weights, so that a graph's types say its precision.

Strongly typed backends compute each layer in the type of its tensors. Inputs and outputs of the
graph keep their types; the casts are inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from exporters import PRECISIONS, ranges
from exporters.module import to_dtype
from exporters.ranges import OutOfRange
from exporters.widen import changes_in_place, widen


def dtype_of(precision: str) -> torch.dtype:
    """Returns the type that a module is cast to at a precision."""
    dtype: torch.dtype = getattr(torch, PRECISIONS[precision].dtype)
    return dtype


def cast_to_precision(network: nn.Module, precision: str) -> nn.Module:
    """Returns a network at a precision: a copy, or in fp32 itself.

    Args:
        network: In float32, in evaluation mode.
    """
    dtype = dtype_of(precision)
    return network if dtype == torch.float32 else to_dtype(copy.deepcopy(network), dtype)


def keep_in_range(
    program: Any,
    precision: str,
    originals: Mapping[str, torch.Tensor],
    run: Callable[[Callable[..., tuple[torch.Tensor, ...]]], object],
) -> tuple[Any, tuple[OutOfRange, ...]]:
    """Puts those parts of a program into float32 whose values its half type cannot hold.

    Args:
        program: A torch.export program at `precision`; it may be changed.
        originals: By name, its parameters and buffers as they were before they were cast.
        run: Calls what it is given with the inputs to judge by, batch by batch.

    Returns:
        The program, and the values that stay in float32.
    """
    dtype = dtype_of(precision)
    found = ranges.find(program, dtype, originals, run)
    if not found:
        return program, ()
    if changes_in_place(program):
        program = program.run_decompositions({})  # which also makes new tensors of all results
        found = ranges.find(program, dtype, originals, run)
    widen(program, [value.node for value in found], dtype, originals)
    return program, found

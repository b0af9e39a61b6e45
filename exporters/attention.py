"""Writes out the attention of a program in operators that every opset has.

The exporter translates `scaled_dot_product_attention` of 4-D tensors only. Before opset 23 it gives
a query whose keys are all masked by a boolean mask the mean of the values, where PyTorch gives 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch

_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


def has_attention(program: Any) -> bool:
    """Whether a torch.export program has the operator."""
    return any(node.target is _ATTENTION for node in program.graph.nodes)


def write_out(program: Any) -> Any:
    """Returns a program with its attention as matrix products and a softmax."""
    return program.run_decompositions({_ATTENTION: _attention})


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Computes `torch.nn.functional.scaled_dot_product_attention`, by its documentation.

    A query whose keys are all masked gets 0.

    Args:
        query: `[..., queries, channels]`.
        key: `[..., keys, channels]`.
        value: `[..., keys, channels of the result]`.
        attn_mask: False or -inf where a key is masked; else what is added to its score.
        dropout_p: Not used: a program is in evaluation mode.
        is_causal: Mask the keys after each query.
        scale: The factor of the scores; by default 1 over the root of the channels.
        enable_gqa: Several heads of `query` share one of `key` and `value`.
    """
    del dropout_p
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    root = math.sqrt(abs(factor))  # applied to both, so that the products stay small
    scores = (query * math.copysign(root, factor)) @ (key * root).mT
    if is_causal:
        after = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        attn_mask = after.tril()
    if attn_mask is None:
        return scores.softmax(-1) @ value
    if attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(attn_mask.logical_not(), -math.inf)
    else:
        scores = scores + attn_mask
    masked = (scores == -math.inf).all(-1, keepdim=True)
    return scores.softmax(-1).masked_fill(masked, 0.0) @ value

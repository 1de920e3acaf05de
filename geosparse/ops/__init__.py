"""The one dispatch point for attention: `reference` is the truth, the others are held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from . import cpu, triton
from .budgets import Budgets, budgets_of_row
from .cpu import cpu_attention, remember_value_sum
from .key_index import PAGE, IndexSlot, KeyIndex, remember_index
from .reference import reference_attention
from .selectors import needs_index
from .spec import (
    CHOICES,
    INDEXED,
    SELECTORS,
    SHARES,
    TAILS,
    Attended,
    Selector,
    Selectors,
    Tail,
    Tails,
    check_selector,
    meant,
    needs_gradient,
)
from .topn import top_n
from .torch_chunked import chunked_attention
from .triton import triton_attention
from .visibility import Span, Visibility, causal_mask, dense_mask, span_of, visible_rows

# Name -> attention path; all take the arguments of `reference_attention`.
PATHS: dict[str, Callable[..., Attended]] = {
    "reference": reference_attention,
    "torch": chunked_attention,
    "cpu": cpu_attention,
    "triton": triton_attention,
}


def best_path(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    sink: torch.Tensor | None = None,
) -> str:
    """The name of the fastest path that takes these tensors; with a gradient, autograd's."""
    if sink is not None and needs_gradient(sink):
        return "torch"
    if query.is_cuda:
        return "triton" if triton.supports(query, key, value, bias) else "torch"
    return "cpu" if cpu.supports(query, key, value, bias) else "torch"


__all__ = [
    "CHOICES",
    "INDEXED",
    "PAGE",
    "PATHS",
    "SELECTORS",
    "SHARES",
    "TAILS",
    "Attended",
    "Budgets",
    "IndexSlot",
    "KeyIndex",
    "Selector",
    "Selectors",
    "Span",
    "Tail",
    "Tails",
    "Visibility",
    "best_path",
    "budgets_of_row",
    "causal_mask",
    "check_selector",
    "chunked_attention",
    "cpu_attention",
    "dense_mask",
    "meant",
    "memory",
    "needs_gradient",
    "needs_index",
    "reference_attention",
    "remember_index",
    "remember_value_sum",
    "span_of",
    "top_n",
    "triton_attention",
    "visible_rows",
]

"""The one dispatch point for attention: `reference` is the truth, the others are held against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .chunked import chunked_attention
from .cpu import cpu_attention, remember_value_sum, supports
from .reference import causal_mask, reference_attention
from .select import top_n
from .types import TAILS, Attended, Tail, Tails

# Name -> attention path; all take the arguments of `reference_attention`.
PATHS: dict[str, Callable[..., Attended]] = {
    "reference": reference_attention,
    "torch": chunked_attention,
    "cpu": cpu_attention,
}


def best_path(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> str:
    """The name of the fastest path that takes these tensors."""
    return "cpu" if supports(query, key, value, bias) else "torch"


__all__ = [
    "PATHS",
    "TAILS",
    "Attended",
    "Tail",
    "Tails",
    "best_path",
    "causal_mask",
    "chunked_attention",
    "cpu_attention",
    "reference_attention",
    "remember_value_sum",
    "top_n",
]

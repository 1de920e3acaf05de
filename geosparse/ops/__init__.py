"""Attention on tensors: selectors, tails, and the paths that follow them. Each name is loaded when it is first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budgets import Budgets, budgets_of_row
    from .call import AttentionCall, HeadRules, Terms
    from .cpu import cpu_attention, remember_value_sum
    from .dispatch import PATHS, attend, best_path
    from .key_index import PAGE, IndexSlot, KeyIndex, remember_index
    from .reference import reference_attention
    from .selectors import SELECTORS, needs_index
    from .spec import Attended, Selector, Selectors, Tail, Tails, needs_gradient
    from .tails import MEAN_FRACTION, TAIL_FAMILIES, TAILS, check_tail, expand_tail
    from .topn import top_n
    from .torch_chunked import chunked_attention
    from .triton import triton_attention
    from .visibility import Span, Visibility, causal_mask, dense_mask, span_of, visible_rows

_HOMES = {
    "MEAN_FRACTION": "tails",
    "PAGE": "key_index",
    "PATHS": "dispatch",
    "SELECTORS": "selectors",
    "TAILS": "tails",
    "TAIL_FAMILIES": "tails",
    "AttentionCall": "call",
    "Attended": "spec",
    "Budgets": "budgets",
    "HeadRules": "call",
    "IndexSlot": "key_index",
    "KeyIndex": "key_index",
    "Selector": "spec",
    "Selectors": "spec",
    "Span": "visibility",
    "Tail": "spec",
    "Tails": "spec",
    "Terms": "call",
    "Visibility": "visibility",
    "attend": "dispatch",
    "best_path": "dispatch",
    "budgets_of_row": "budgets",
    "causal_mask": "visibility",
    "check_tail": "tails",
    "chunked_attention": "torch_chunked",
    "cpu_attention": "cpu",
    "dense_mask": "visibility",
    "expand_tail": "tails",
    "needs_gradient": "spec",
    "needs_index": "selectors",
    "reference_attention": "reference",
    "remember_index": "key_index",
    "remember_value_sum": "cpu",
    "span_of": "visibility",
    "top_n": "topn",
    "triton_attention": "triton",
    "visible_rows": "visibility",
}

__all__ = [
    "MEAN_FRACTION",
    "PAGE",
    "PATHS",
    "SELECTORS",
    "TAILS",
    "TAIL_FAMILIES",
    "Attended",
    "AttentionCall",
    "Budgets",
    "HeadRules",
    "IndexSlot",
    "KeyIndex",
    "Selector",
    "Selectors",
    "Span",
    "Tail",
    "Tails",
    "Terms",
    "Visibility",
    "attend",
    "best_path",
    "budgets_of_row",
    "causal_mask",
    "check_tail",
    "chunked_attention",
    "cpu_attention",
    "dense_mask",
    "expand_tail",
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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

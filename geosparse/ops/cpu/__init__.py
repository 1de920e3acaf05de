"""CPU path: C++ kernels for decode and for exact top-N prefill, called through ctypes on data pointers."""

from __future__ import annotations

from functools import lru_cache

import torch

from ..chunked import chunked_attention
from ..index import index_of
from ..selectors import needs_index
from ..span import Span, Visibility, page_starts
from ..types import SELECTORS, TAILS, Attended, Keep, Selectors, Tails, keep_tensor, per_head
from .decode import decode, remember_value_sum, value_sum_of
from .library import DTYPES, ISAS, isa, library, load_error
from .prefill import prefill

MAX_DIM = 512  # of a key that an index is read for


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `cpu_attention` takes these tensors; autograd and an additive bias stay with the torch path."""
    tensors = (query, key, value)
    return (
        bias is None
        and all(tensor.device.type == "cpu" and tensor.dtype in DTYPES for tensor in tensors)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and query.shape[-1] <= MAX_DIM
        and library() is not None
    )


def cpu_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    n_keep: Keep,
    *,
    tail: Tails,
    scaling: float,
    selector: Selectors = "topn",
    share_kv: bool = False,
    mask: Visibility | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> Attended:
    """`reference_attention` (same arguments, same meaning) for CPU tensors; `bias` must be None.

    One query per row runs in one fused kernel that reads every key (or its code) once and only the kept values;
    several queries get their scores and outputs from matrix products and everything between from a kernel. Pages with
    several queries, and shared selections, stay with the torch path.
    """
    heads, queries = query.shape[1:3]
    words = tuple(per_head(selector, heads))
    visibility = Span() if mask is None else mask
    if share_kv or (queries > 1 and not {"paged", "paged+lowbit"}.isdisjoint(words)) or _blind_tail(words, tail):
        return chunked_attention(
            query,
            key,
            value,
            n_keep,
            tail=tail,
            scaling=scaling,
            selector=selector,
            share_kv=share_kv,
            mask=mask,
            softcap=softcap,
            sink=sink,
        )
    index = None
    if needs_index(words):
        index = index_of(key, page_starts(visibility, query.shape[0]))
    budgets = keep_tensor(n_keep, "cpu") if isinstance(n_keep, torch.Tensor) else _budgets(tuple(n_keep))
    tails, selectors = _tails(tuple(per_head(tail, heads))), _selectors(words)
    sinks = None if sink is None else sink.detach().float().contiguous()
    if queries == 1:
        rows = budgets[..., 0].contiguous()
        return decode(query, key, value, rows, tails, selectors, scaling, visibility, softcap, sinks, index)
    return prefill(query, key, value, budgets, tails, selectors, scaling, visibility, softcap, sinks, index)


def _blind_tail(words: tuple[str, ...], tail: Tails) -> bool:
    """Whether a head without scores asks for a tail that needs the mass of what it did not score."""
    tails = per_head(tail, len(words))
    return any(word == "sink_recent" and tail != "renormalize" for word, tail in zip(words, tails, strict=True))


@lru_cache(maxsize=4096)
def _budgets(n_keep: tuple[int, ...]) -> torch.Tensor:
    """`n_keep` as a tensor `[1, Hq, 1]`; the same few tuples come back at every token."""
    return keep_tensor(n_keep, "cpu")


@lru_cache(maxsize=4096)
def _tails(words: tuple[str, ...]) -> torch.Tensor:
    """The place of each head's tail in TAILS, which is the kernels' enum."""
    return torch.tensor([list[str](TAILS).index(word) for word in words], dtype=torch.int64)


@lru_cache(maxsize=4096)
def _selectors(words: tuple[str, ...]) -> torch.Tensor:
    """The place of each head's selector in SELECTORS, which is the kernels' enum."""
    return torch.tensor([list[str](SELECTORS).index(word) for word in words], dtype=torch.int64)


__all__ = [
    "DTYPES",
    "ISAS",
    "cpu_attention",
    "isa",
    "library",
    "load_error",
    "remember_value_sum",
    "supports",
    "value_sum_of",
]

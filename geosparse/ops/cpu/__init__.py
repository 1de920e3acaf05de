"""CPU path: C++ kernels for decode, exact top-N prefill and single rows times weights, called through ctypes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from .. import buffers
from ..buffers import PLAIN
from ..key_index import index_of
from ..selectors import needs_index
from ..spec import SELECTORS, TAILS, Attended, Keep, Selectors, Tails, keep_tensor, needs_gradient, per_head
from ..torch_chunked import chunked_attention
from ..visibility import Span, Visibility, page_starts
from .decode import MAX_DIM, decode, remember_value_sum, value_sum_of
from .library import DTYPES, ISAS, isa, library, load_error
from .linear import product
from .prefill import prefill
from .rms_norm import rms_norm

CAUSAL = Span()


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `cpu_attention` takes these tensors; autograd and an additive bias stay with the torch path."""
    tensors = (query, key, value)
    return (
        bias is None
        and all(tensor.device.type == "cpu" and tensor.dtype in DTYPES and type(tensor) in PLAIN for tensor in tensors)
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
    several queries, shared selections and autograd stay with the torch path.
    """
    batch, heads, queries, _ = query.shape
    rules = _rules(heads, _hashable(tail), _hashable(selector))
    visibility = CAUSAL if mask is None else mask
    if share_kv or rules.blind or (queries > 1 and rules.paged) or needs_gradient(query, key, value, sink):
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
    index = index_of(key, page_starts(visibility, batch)) if rules.indexed else None
    if sink is not None:
        sink = sink.detach().float().contiguous()
    serve = decode if queries == 1 else prefill
    if isinstance(n_keep, torch.Tensor):
        budgets = keep_tensor(n_keep, "cpu")
        budgets = budgets[..., 0].contiguous() if queries == 1 else budgets
    else:
        budgets = _budgets(tuple(n_keep), queries == 1)
    return serve(query, key, value, budgets, rules.tails, rules.selectors, scaling, visibility, softcap, sink, index)


class _Rules(NamedTuple):
    """The words of a layer's heads as the kernels take them, and what they imply."""

    tails: torch.Tensor  # [Hq] int64 places in TAILS
    selectors: torch.Tensor  # [Hq] int64 places in SELECTORS
    indexed: bool
    paged: bool
    blind: bool  # a head without scores asks for a tail that needs the mass of what it did not score


def _hashable(words: str | Sequence[str]) -> str | tuple[str, ...]:
    return words if type(words) is str else tuple(words)


@lru_cache(maxsize=4096)
def _rules(heads: int, tail: str | tuple[str, ...], selector: str | tuple[str, ...]) -> _Rules:
    """Worked out once; the same few words come back at every token."""
    tails, selectors = per_head(tail, heads), per_head(selector, heads)
    return _Rules(
        _remembered([list[str](TAILS).index(word) for word in tails]),
        _remembered([list[str](SELECTORS).index(word) for word in selectors]),
        needs_index(selectors),  # type: ignore[arg-type]
        not {"paged", "paged+lowbit"}.isdisjoint(selectors),
        any(pair[0] == "sink_recent" and pair[1] != "renormalize" for pair in zip(selectors, tails, strict=True)),
    )


def _remembered(numbers: list[int]) -> torch.Tensor:
    """int64 for the kernels; an error where torch makes tensors without memory at this moment, which would be kept."""
    made = buffers.numbers(numbers, torch.int64)
    buffers.check("the rules of the heads", made, torch.int64, (len(numbers),))
    return made


@lru_cache(maxsize=4096)
def _budgets(n_keep: tuple[int, ...], one: bool) -> torch.Tensor:
    """`n_keep` as a tensor `[1, Hq, 1]`, or `[1, Hq]` for one query; the same few tuples come back at every token."""
    found = _remembered(list(n_keep))
    return found[None] if one else found[None, :, None]


__all__ = [
    "DTYPES",
    "ISAS",
    "cpu_attention",
    "isa",
    "library",
    "load_error",
    "product",
    "remember_value_sum",
    "rms_norm",
    "supports",
    "value_sum_of",
]

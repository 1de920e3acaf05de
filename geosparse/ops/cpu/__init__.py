"""CPU path: C++ kernels for decode, exact top-N prefill and single rows times weights, called through ctypes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from .. import buffers
from ..buffers import PLAIN
from ..key_index import index_of
from ..selectors import SELECTORS, fits
from ..spec import Attended, Keep, Selectors, Tails, keep_tensor, needs_gradient, per_head
from ..tails import TAILS
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
    several queries get their scores and outputs from matrix products and everything between from a kernel. Selectors
    without a kernel for that, shared selections and autograd stay with the torch path.
    """
    batch, heads, queries, _ = query.shape
    rules = _rules(heads, _hashable(tail), _hashable(selector))
    visibility = CAUSAL if mask is None else mask
    if share_kv or not (rules.decodes if queries == 1 else rules.prefills) or needs_gradient(query, key, value, sink):
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
    selectors: torch.Tensor  # [Hq] int64 numbers of enum Selector; -1: no kernel
    indexed: bool
    decodes: bool  # the kernel for one query serves all heads
    prefills: bool  # the kernels for several queries do


def _hashable(words: str | Sequence[str]) -> str | tuple[str, ...]:
    return words if type(words) is str else tuple(words)


@lru_cache(maxsize=4096)
def _rules(heads: int, tail: str | tuple[str, ...], selector: str | tuple[str, ...]) -> _Rules:
    """Worked out once; the same few words come back at every token."""
    tails, selectors = per_head(tail, heads), [SELECTORS[name] for name in per_head(selector, heads)]
    # A head without scores does not know the mass of what it left out.
    known = all(map(fits, per_head(selector, heads), tails))
    decodes = known and all(rule.kernel is not None for rule in selectors)
    return _Rules(
        _remembered([TAILS.index(name) for name in tails]),
        _remembered([-1 if rule.kernel is None else rule.kernel for rule in selectors]),
        any(rule.indexed for rule in selectors),
        decodes,
        decodes and all(rule.prefill_kernel for rule in selectors),
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

"""CPU path: C++ kernels for decode, exact top-N prefill and single rows times weights, called through ctypes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from .. import buffers
from ..buffers import PLAIN
from ..call import AttentionCall, HeadRules, as_function
from ..key_index import index_of
from ..selectors import SELECTORS, fits
from ..spec import Attended, keep_tensor, per_head
from ..tails import TailShares, shares_of
from ..torch_chunked import attend_chunked
from ..value_means import means_of
from ..visibility import Span, Visibility, page_starts
from .decode import MAX_DIM, decode, remember_value_sum, value_sum_of
from .handed import SHARES, KernelRules
from .library import DTYPES, ISAS, isa, library, load_error
from .linear import product
from .prefill import prefill
from .rms_norm import rms_norm

FIRST = (0,)  # key that is not padding


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `cpu_attention` takes these tensors; autograd and an additive bias stay with the torch path."""
    if bias is not None or query.shape[-1] > MAX_DIM or library() is None:
        return False
    graph = torch.is_grad_enabled()
    for tensor in (query, key, value):
        if type(tensor) not in PLAIN or not tensor.is_cpu or tensor.dtype not in DTYPES:
            return False
        if graph and tensor.requires_grad:
            return False
    return True


def attend_cpu(call: AttentionCall, rules: HeadRules) -> Attended:
    """`reference_attention` for CPU tensors in C++ kernels; the torch path where they do not serve.

    One query per row runs in one fused kernel that reads every key (or its code) once and only the kept values;
    several queries get their scores and outputs from matrix products and everything between from a kernel. Selectors
    without a kernel for that, shared selections, biases and autograd stay with the torch path.
    """
    query, key, _, mask, bias, terms, *_ = call
    n_keep, tail, selector, share_kv, *_ = rules
    batch, heads, queries, _ = query.shape
    one = queries == 1
    tail, selector = tail if type(tail) is str else tuple(tail), selector if type(selector) is str else tuple(selector)
    fixed = n_keep if type(n_keep) is tuple else None if isinstance(n_keep, torch.Tensor) else tuple(n_keep)
    kernel_rules, indexed, decodes, prefills, paged = _handed(heads, batch, tail, selector, fixed, one)
    if (
        share_kv
        or not (decodes if one else prefills)
        or bias is not None
        or (torch.is_grad_enabled() and call.needs_gradient)
    ):
        return attend_chunked(call, rules)
    if paged and not _pages_follow(mask, one):
        return attend_chunked(call, rules)
    if terms.sink is not None:
        call = call._replace(terms=terms._replace(sink=terms.sink.detach().float().contiguous()))
    if mask is not None:
        kernel_rules = kernel_rules._replace(first=mask.starts(batch) if isinstance(mask, Span) else ())
    index = None
    if indexed:
        index = index_of(key, kernel_rules.first if mask is None else page_starts(mask, batch))
    if fixed is None:
        budgets = keep_tensor(n_keep, "cpu")
        kernel_rules = kernel_rules._replace(budgets=budgets[..., 0].contiguous() if one else budgets)
    if one:
        means = None
        if paged:
            held = means_of(call.value, kernel_rules.first)
            means = held.means if held.room else None
        return decode(call, kernel_rules, index, means)
    return prefill(call, kernel_rules, None if index is None else index.decoded(key.shape[2], key.shape[3]))


def serve_cpu(call: AttentionCall, rules: HeadRules) -> Attended | None:
    """`attend_cpu`; None where it does not take these tensors."""
    return attend_cpu(call, rules) if supports(call.query, call.key, call.value, call.bias) else None


cpu_attention = as_function(attend_cpu, "cpu_attention")


class _Handed(NamedTuple):
    """What the kernels are handed for a layer's heads under plain causality, and what their words imply."""

    rules: KernelRules
    indexed: bool
    decodes: bool  # the kernel for one query serves all heads
    prefills: bool  # the kernels for several queries do
    paged: bool  # a tail gives to pages


@lru_cache(maxsize=4096)
def _handed(
    heads: int,
    batch: int,
    tail: str | tuple[str | TailShares, ...],
    selector: str | tuple[str, ...],
    n_keep: tuple[int, ...] | None,
    one: bool,
) -> _Handed:
    """Worked out once; the same few words and budgets come back at every token. Without budgets: a tensor has them."""
    tails = [shares_of(each) for each in per_head(tail, heads)]
    selectors = [SELECTORS[name] for name in per_head(selector, heads)]
    # A head without scores does not know the mass of what it left out.
    known = all(map(fits, per_head(selector, heads), tails))
    decodes = known and all(rule.kernel is not None for rule in selectors)
    budgets = _remembered(n_keep or (1,) * heads, torch.int64, (heads,))
    rules = KernelRules(
        budgets[None] if one else budgets[None, :, None],
        _remembered(tails, torch.float32, (heads, SHARES)),
        _remembered([-1 if rule.kernel is None else rule.kernel for rule in selectors], torch.int64, (heads,)),
        FIRST * batch,
    )
    prefills = decodes and all(rule.prefill_kernel for rule in selectors)
    paged = any(each.pages for each in tails)
    return _Handed(rules, any(rule.indexed for rule in selectors), decodes, prefills, paged)


def _pages_follow(mask: Visibility | None, one: bool) -> bool:
    """Whether the pages of what is seen are where the kernels look for them: a window moves them at every token."""
    return mask is None or (isinstance(mask, Span) and (mask.window is None or not one))


def _remembered(numbers: Sequence[Any], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """For the kernels; an error where torch makes tensors without memory at this moment, which would be kept."""
    made = buffers.numbers(numbers, dtype)
    buffers.check("the rules of the heads", made, dtype, shape)
    return made


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

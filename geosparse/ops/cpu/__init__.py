"""CPU path: C++ kernels for decode, exact top-N prefill and single rows times weights, called through ctypes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from .. import buffers
from ..buffers import PLAIN
from ..call import AttentionCall, HeadRules, as_function
from ..key_index import index_of
from ..selectors import SELECTORS, fits
from ..spec import Attended, keep_tensor, per_head
from ..tails import TAILS
from ..torch_chunked import attend_chunked
from ..visibility import Span, page_starts
from .decode import MAX_DIM, decode, remember_value_sum, value_sum_of
from .handed import KernelRules
from .library import DTYPES, ISAS, isa, library, load_error
from .linear import product
from .prefill import prefill
from .rms_norm import rms_norm

FIRST = (0,)  # key that is not padding


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


def attend_cpu(call: AttentionCall, rules: HeadRules) -> Attended:
    """`reference_attention` for CPU tensors in C++ kernels; the torch path where they do not serve.

    One query per row runs in one fused kernel that reads every key (or its code) once and only the kept values;
    several queries get their scores and outputs from matrix products and everything between from a kernel. Selectors
    without a kernel for that, shared selections, biases and autograd stay with the torch path.
    """
    batch, heads, queries, _ = call.query.shape
    words = _kernel_rules(heads, _hashable(rules.tail), _hashable(rules.selector))
    served = words.decodes if queries == 1 else words.prefills
    if rules.share_kv or not served or call.bias is not None or (torch.is_grad_enabled() and call.needs_gradient):
        return attend_chunked(call, rules)
    if call.terms.sink is not None:
        sink = call.terms.sink.detach().float().contiguous()
        call = call._replace(terms=call.terms._replace(sink=sink))
    mask = call.mask
    first = FIRST * batch if mask is None else mask.starts(batch) if isinstance(mask, Span) else ()
    index = index_of(call.key, first if mask is None else page_starts(mask, batch)) if words.indexed else None
    budgets = rules.n_keep
    if isinstance(budgets, torch.Tensor):
        budgets = keep_tensor(budgets, "cpu")
        budgets = budgets[..., 0].contiguous() if queries == 1 else budgets
    else:
        budgets = _budgets(tuple(budgets), queries == 1)
    kernel_rules = KernelRules(budgets, words.tails, words.selectors, first)
    if queries == 1:
        return decode(call, kernel_rules, index)
    return prefill(call, kernel_rules, None if index is None else index.decoded(call.key.shape[2], call.key.shape[3]))


def serve_cpu(call: AttentionCall, rules: HeadRules) -> Attended | None:
    """`attend_cpu`; None where it does not take these tensors."""
    return attend_cpu(call, rules) if supports(call.query, call.key, call.value, call.bias) else None


cpu_attention = as_function(attend_cpu, "cpu_attention")


class _Words(NamedTuple):
    """The words of a layer's heads as the kernels take them, and what they imply."""

    tails: torch.Tensor  # [Hq] int64 places in TAILS
    selectors: torch.Tensor  # [Hq] int64 numbers of enum Selector; -1: no kernel
    indexed: bool
    decodes: bool  # the kernel for one query serves all heads
    prefills: bool  # the kernels for several queries do


def _hashable(words: str | Sequence[str]) -> str | tuple[str, ...]:
    return words if type(words) is str else tuple(words)


@lru_cache(maxsize=4096)
def _kernel_rules(heads: int, tail: str | tuple[str, ...], selector: str | tuple[str, ...]) -> _Words:
    """Worked out once; the same few words come back at every token."""
    tails, selectors = per_head(tail, heads), [SELECTORS[name] for name in per_head(selector, heads)]
    # A head without scores does not know the mass of what it left out.
    known = all(map(fits, per_head(selector, heads), tails))
    decodes = known and all(rule.kernel is not None for rule in selectors)
    return _Words(
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

"""CUDA path: kernels in Triton for decode and block prefill. They also run in triton's interpreter, on CPU tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from ..buffers import zeros
from ..call import AttentionCall, HeadRules, as_function
from ..cpu.decode import value_sum_of
from ..key_index import PAGE, WIDTH, index_of
from ..selectors import needs_index, rules_of
from ..spec import Attended, Keep, T
from ..torch_chunked import attend_chunked
from ..value_means import means_of
from ..visibility import Span, page_starts
from .decode import Keys, decode, passes_of
from .exact import exact_prefill
from .library import runs_on
from .prefill import block_prefill

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_DIM = 256
MAX_GROUP = 32  # heads in a word


def supports(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether `triton_attention` takes these tensors; autograd and an additive bias stay with the torch path."""
    tensors = (query, key, value)
    return (
        bias is None
        and all(tensor.device == query.device and tensor.dtype == query.dtype for tensor in tensors)
        and query.dtype in DTYPES
        and max(query.shape[-1], value.shape[-1]) <= MAX_DIM
        and query.shape[1] <= MAX_GROUP * key.shape[1]
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and runs_on(query.device)
    )


def attend_triton(call: AttentionCall, rules: HeadRules) -> Attended:
    """`reference_attention` for a GPU in Triton kernels; the torch path where they do not serve.

    Several queries whose heads do not all keep the N highest of the same scores, or in a sliding window, masks with
    holes, selectors without kernels, biases, shared selections and autograd stay with the torch path; so do tails that
    give mass to pages in a sliding window, with which pages move.
    """
    query, key, value, span = call.query, call.key, call.value, call.visibility
    batch, heads, queries, _ = query.shape
    known = rules_of(rules.selector)
    plain = isinstance(span, Span) and call.bias is None and not rules.share_kv and not call.needs_gradient
    if not plain or not all(rule.kernel is not None for rule in known):
        return attend_chunked(call, rules)
    assert isinstance(span, Span)
    if queries > 1:
        if span.window is not None or len(known) > 1 or known[0].ranks is None:
            return attend_chunked(call, rules)
        coded = None
        if known[0].coded:
            coded = index_of(key, span.starts(batch)).decoded(key.shape[2], key.shape[3]).to(key.dtype)
        return exact_prefill(call, rules, coded)
    passes = passes_of(heads, _hashable(rules.tail), _hashable(rules.selector), query.device)
    paged = any(each.paged for each in passes)
    if paged and span.window is not None:
        return attend_chunked(call, rules)
    first, length = _rows(span, batch, key.shape[2], query.device)
    keys = Keys(key, value, first, length)
    if needs_index(rules.selector):
        keys = _indexed(keys, page_starts(span, batch))
    if any(each.mean for each in passes):
        keys = keys._replace(value_sum=_value_sum(value, span))
    if paged:
        keys = keys._replace(means=_page_means(value, span.starts(batch)))
    output, kept = decode(query[:, :, 0], keys, _budgets(rules.n_keep, query.device), passes, *call.terms)
    return Attended(output[:, :, None], kept.sum(0, dtype=torch.int64))


def serve_triton(call: AttentionCall, rules: HeadRules) -> Attended | None:
    """`attend_triton`; None where it does not take these tensors."""
    return attend_triton(call, rules) if supports(call.query, call.key, call.value, call.bias) else None


triton_attention = as_function(attend_triton, "triton_attention")


def _hashable(words: str | Sequence[T]) -> str | tuple[T, ...]:
    return words if isinstance(words, str | tuple) else tuple(words)


def _rows(span: Span, batch: int, keys: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The first key that the last query of each row sees and the one behind the last, int32 `[B]`."""
    first = _numbers(span.starts(batch), device)
    length = torch.full((batch,), keys, dtype=torch.int32, device=device)
    if span.window is not None:
        first = torch.maximum(first, length - span.window)
    return torch.minimum(first, length), length


@lru_cache(maxsize=4096)
def _numbers(numbers: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """int32 on the device; the same few tuples come back at every token."""
    return torch.tensor(numbers, dtype=torch.int32, device="cpu").to(device)


def _budgets(n_keep: Keep, device: torch.device) -> torch.Tensor:
    """int32 `[B or 1, Hq]`."""
    if isinstance(n_keep, torch.Tensor):
        return n_keep[..., 0].to(device, torch.int32).contiguous()
    return _numbers(tuple(n_keep), device)[None]


def _indexed(keys: Keys, first: tuple[int, ...]) -> Keys:
    """`keys` with their index, which is brought up to date."""
    index = index_of(keys.key, first)
    if index.low.dim() == 4:
        return keys._replace(low=index.low, high=index.high, codes=index.codes)
    batch, kv_heads = keys.key.shape[:2]
    width, device = -(-keys.key.shape[-1] // WIDTH) * WIDTH, keys.key.device
    empty = zeros((batch, kv_heads, 1, width), torch.float16, device)
    codes = zeros((batch, kv_heads, 1, width // 8, PAGE, 4), torch.uint8, device)
    return keys._replace(low=empty, high=empty, codes=codes)


def _page_means(value: torch.Tensor, first: tuple[int, ...]) -> torch.Tensor:
    """Means of the complete pages of `value`, `[B, Hkv, P, Dv]` fp16, brought up to date."""
    means = means_of(value, first).means
    return means if means.dim() == 4 else zeros((*value.shape[:2], 1, value.shape[-1]), torch.float16, value.device)


def _value_sum(value: torch.Tensor, span: Span) -> torch.Tensor:
    """Sum of the visible values `[B, Hkv, Dv]`: the remembered one, or else read off."""
    batch, _, keys, _ = value.shape
    if span.window is None:
        known = value_sum_of(value, span.starts(batch))
        if known is not None:
            return known.contiguous()
    seen = span.mask(1, keys, value.device)[:, 0, 0, :, None]
    return torch.where(seen[:, None], value, 0.0).sum(-2, dtype=torch.float32)


__all__ = ["block_prefill", "exact_prefill", "supports", "triton_attention"]

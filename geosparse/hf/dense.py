"""Dense attention where torch's kernels lack the formula (soft caps, learned sinks) or are slow (single queries)."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from ..ops import AttentionCall, HeadRules, Terms, Visibility, best_path, causal_mask
from ..ops.cpu import attend_cpu
from ..ops.torch_chunked import chunk_rows
from ..ops.visibility import chunk_of

EVERY = 2**31 - 1  # an N that no context reaches


# Rows of a dense attention whose mask has to be stored: its memory is this times the keys.
DENSE_ROWS = 1024


def attend_dense(call: AttentionCall) -> torch.Tensor:
    """Dense attention `[B, Hq, T, Dv]`: SDPA, or the definition where a soft cap or learned sink rules SDPA out; single
    queries by our own kernel where it takes them."""
    query, key, value, terms = call.query, call.key, call.value, call.terms
    mask = call.mask if call.given is None else call.given
    queries, keys = query.shape[2], key.shape[2]
    single = decode_dense(query, key, value, mask, *terms)
    if single is not None:
        return single
    if mask is None and (queries == 1 or queries == keys) and terms.softcap is None and terms.sink is None:
        return _sdpa(query, key, value, None, terms, causal=queries > 1)
    if isinstance(mask, torch.Tensor):  # transformers 4 makes some of them longer than the keys
        return _dense_rows(query, key, value, mask[..., :keys], terms)
    parts = []
    for start in range(0, queries, DENSE_ROWS):
        stop = min(start + DENSE_ROWS, queries)
        seen, first, end = chunk_of(call.visibility, start, stop, queries, keys, query.device)
        rows = query[:, :, start:stop]
        parts.append(_dense_rows(rows, key[:, :, first:end], value[:, :, first:end], seen, terms))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _dense_rows(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, terms: Terms
) -> torch.Tensor:
    if terms.softcap is None and terms.sink is None:
        return _sdpa(query, key, value, mask, terms)
    return chunked_dense(query, key, value, mask, *terms)


def _flash(query: torch.Tensor) -> Any:
    """flash-attn's function where it is installed and takes this query (half precision, CUDA, no gradient); or None."""
    if not query.is_cuda or query.dtype not in (torch.float16, torch.bfloat16) or torch.is_grad_enabled():
        return None
    return _flash_function() if query.shape[-1] <= 256 else None


@cache
def _flash_function() -> Any:
    try:
        from flash_attn import flash_attn_func
    except ImportError:
        return None
    return flash_attn_func


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    terms: Terms,
    causal: bool = False,
) -> torch.Tensor:
    if mask is None:
        flash = _flash(query)
        if flash is not None:
            rows = (tensor.transpose(1, 2) for tensor in (query, key, value))
            output: torch.Tensor = flash(*rows, softmax_scale=terms.scaling, causal=causal)
            return output.transpose(1, 2)
    grouped = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=causal, scale=terms.scaling, enable_gqa=grouped
    )


def decode_dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Visibility | None,
    scaling: float,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """One query per row over every visible key by the C++ kernel, which reads the keys of a KV group once.

    Args:
        query: `[B, Hq, 1, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        mask: As in `chunked_dense`, or a Span; None where every key is visible.
        scaling, softcap, sink: As in `chunked_dense`.

    Returns:
        `[B, Hq, 1, Dv]`; None where the kernel does not take these tensors, or this mask.
    """
    if query.shape[2] != 1 or best_path(query, key, value, None, sink) != "cpu":
        return None
    if isinstance(mask, torch.Tensor) and (mask.dtype != torch.bool or mask.shape[1:] != (1, 1, key.shape[2])):
        return None
    call = AttentionCall(query, key, value, mask, None, Terms(scaling, softcap, sink))
    return attend_cpu(call, HeadRules((EVERY,) * query.shape[1], "drop")).output


def chunked_dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """Dense attention by definition, in fp32, a chunk of queries at a time; the backward pass computes each again.

    Args:
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        mask: `[B or 1, 1, T, S]`, bool or added to the logits; None is causal, last query at last key.
        scaling: Factor on the logits.
        softcap: Logits become `softcap * tanh(logits / softcap)`.
        sink: `[Hq]` learned logits of a token without a value.

    Returns:
        `[B, Hq, T, Dv]` in the dtype of `query`; a query that sees nothing gets zeros.
    """
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    rows = chunk_rows(batch, heads, keys, query.device)
    outputs = []
    for start in range(0, queries, rows):
        stop = min(start + rows, queries)
        if mask is None:
            part = causal_mask(stop - start, keys - queries + stop, query.device)
        else:
            part = mask[:, :, start:stop, :keys]
        seen = slice(part.shape[-1])
        arguments = (query[:, :, start:stop], key[:, :, seen], value[:, :, seen], part, scaling, softcap, sink)
        if torch.is_grad_enabled():
            outputs.append(checkpoint(_rows, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(_rows(*arguments))
    return torch.cat(outputs, dim=2)


def _rows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """`chunked_dense` of a few queries, without a change in place: autograd goes through it."""
    batch, heads, queries, dim = query.shape
    grouped = query.float().reshape(batch, key.shape[1], -1, dim)
    logits = (grouped @ key.float().transpose(-1, -2)).view(batch, heads, queries, -1) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    blind = torch.isneginf(logits).all(-1, keepdim=True)
    if sink is not None:
        logits = torch.cat([logits, sink.float()[None, :, None, None].expand(batch, heads, queries, 1)], dim=-1)
    weight = logits.masked_fill(blind, 0.0).softmax(-1)[..., : key.shape[2]].masked_fill(blind, 0.0)
    output = weight.reshape(batch, key.shape[1], -1, key.shape[2]) @ value.float()
    return output.view(batch, heads, queries, -1).to(query.dtype)

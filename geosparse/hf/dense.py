"""Dense attention where torch's kernels lack the formula (soft caps, learned sinks) or are slow (single queries)."""

from __future__ import annotations

import torch
from torch.utils.checkpoint import checkpoint

from ..ops import Visibility, best_path, causal_mask, cpu_attention
from ..ops.torch_chunked import chunk_rows

EVERY = 2**31 - 1  # an N that no context reaches


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
    every = (EVERY,) * query.shape[1]
    return cpu_attention(
        query, key, value, every, tail="drop", scaling=scaling, mask=mask, softcap=softcap, sink=sink
    ).output


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

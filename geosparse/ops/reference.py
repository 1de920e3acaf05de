"""The truth that every fast path is held against: plain PyTorch, one line per definition, nothing clever."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .types import Attended, Tails, tail_flags


def causal_mask(queries: int, keys: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """`[1, 1, T, S]` bool: the last query sees every key, each earlier one a key fewer."""
    rows = torch.arange(keys - queries, keys, device=device)[:, None]
    return (torch.arange(keys, device=device)[None, :] <= rows)[None, None]


def reference_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    n_keep: Sequence[int],
    *,
    tail: Tails,
    scaling: float,
    mask: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Attended:
    """Sparse attention by definition: sort all tokens, keep N, replace the rest by the tail.

    Args:
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        n_keep: `Hq` integers >= 1.
        tail: What stands for the discarded tokens (DESIGN section 4): "drop" nothing, "renormalize" a softmax over
            the kept ones, "centroid" the missing mass times the mean of the visible values; or one word per head.
        scaling: Factor on the logits.
        mask: `[B or 1, 1, T, S]` bool, True where the query sees the key; None is causal, last query at last key.
        bias: Added to the logits, broadcastable to `[B, Hq, T, S]`.
        softcap: Logits become `softcap * tanh(logits / softcap)` (Gemma 2).
        sink: `[Hq]` learned logits of a token that is always seen, never counted and has no value (gpt-oss).
        dtype: Precision of everything in between.

    Returns:
        Output `[B, Hq, T, Dv]` in `dtype`; a query that sees nothing gets zeros.
    """
    heads, kv_heads = query.shape[1], key.shape[1]
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    key = key.repeat_interleave(heads // kv_heads, dim=1)
    value = value.repeat_interleave(heads // kv_heads, dim=1)
    if mask is None:
        mask = causal_mask(query.shape[2], key.shape[2], query.device)
    logits = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias.to(dtype)
    mask = mask.expand(logits.shape)
    logits = logits.masked_fill(~mask, -torch.inf)

    order = logits.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    budget = torch.tensor(list(n_keep), device=query.device)[None, :, None, None]
    keep = (rank < budget) & mask

    sunk = torch.full_like(logits[..., :1], -torch.inf)
    if sink is not None:
        sunk = sunk.maximum(sink.to(dtype)[None, :, None, None])
    alpha = torch.cat([logits, sunk], dim=-1).softmax(-1).nan_to_num(0.0)
    alpha, lost = alpha[..., :-1], alpha[..., -1:]
    weight = alpha * keep
    mass = weight.sum(-1, keepdim=True)
    output = weight @ value
    seen = mask.sum(-1, keepdim=True)
    mean = mask.to(dtype) @ value / seen.clamp_min(1)
    renormalize, centroid = tail_flags(tail, heads, output)
    output = torch.where(renormalize, output / (mass + lost).clamp_min(torch.finfo(dtype).tiny), output)
    output = torch.where(centroid & (seen > 0), output + (1 - mass - lost) * mean, output)
    return Attended(output, keep.sum((0, 2, 3)))

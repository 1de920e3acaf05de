"""The truth that every fast path is held against: plain PyTorch, one line per definition, nothing clever."""

from __future__ import annotations

import torch

from .key_index import index_of
from .selectors import SelectorView, choose, needs_index
from .spec import Attended, Keep, Selectors, Tails, keep_tensor, tail_flags
from .visibility import Span, Visibility, dense_mask, page_starts


def reference_attention(
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
    dtype: torch.dtype = torch.float64,
) -> Attended:
    """Sparse attention by definition: sort all tokens, keep N, replace the rest by the tail.

    Args:
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        n_keep: `Hq` integers >= 1, or int64 `[B or 1, Hq, T or 1]`.
        tail: What stands for the discarded tokens (DESIGN section 4): "drop" nothing, "renormalize" a softmax over
            the kept ones, "centroid" the missing mass times the mean of the visible values, "even" the missing mass
            given to the kept tokens in equal parts, "blend25", "blend50" and "blend75" so many percent of it given to
            that mean and the rest to the kept tokens in equal parts; or one word per head.
        scaling: Factor on the logits.
        selector: How the N tokens are found (`ops.selectors`), or one word per head.
        share_kv: The heads of a KV group select together.
        mask: A Span, or bool `[B or 1, 1, T, S]`, True where the query sees the key; None is causal, last query at
            last key. Selectors that read an index need a Span without a window.
        bias: Added to the logits, broadcastable to `[B, Hq, T, S]`.
        softcap: Logits become `softcap * tanh(logits / softcap)` (Gemma 2).
        sink: `[Hq]` learned logits of a token that is always seen, never counted and has no value (gpt-oss).
        dtype: Precision of everything in between.

    Returns:
        Output `[B, Hq, T, Dv]` in `dtype`; a query that sees nothing gets zeros.
    """
    (batch, heads, queries, _), (kv_heads, keys) = query.shape, key.shape[1:3]
    index = coded = None
    if needs_index(selector):
        index = index_of(key, page_starts(Span() if mask is None else mask, batch))
        coded = index.decoded(keys, key.shape[-1])
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    key = key.repeat_interleave(heads // kv_heads, dim=1)
    value = value.repeat_interleave(heads // kv_heads, dim=1)
    seen = dense_mask(Span() if mask is None else mask, queries, keys, query.device)

    def finish(dots: torch.Tensor) -> torch.Tensor:
        logits = dots * scaling
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    logits = finish(query @ key.transpose(-1, -2))
    if bias is not None:
        logits = logits + bias.to(dtype)
    seen = seen.expand(batch, 1, queries, keys)
    logits = logits.masked_fill(~seen, -torch.inf)

    budgets = keep_tensor(n_keep, query.device)
    sight = SelectorView(query, logits, seen, budgets, finish, scaling, index=index, coded=coded)
    choice = choose(sight, selector, kv_heads, share_kv)
    keep = choice.keep > 0

    sunk = torch.full_like(logits[..., :1], -torch.inf)
    if sink is not None:
        sunk = sunk.maximum(sink.to(dtype)[None, :, None, None])
    # The kept tokens as they are; the others as the selector knows them.
    known = torch.where(keep, logits, choice.estimate)
    alpha = torch.cat([known, sunk], dim=-1).softmax(-1).nan_to_num(0.0)
    alpha, lost = alpha[..., :-1], alpha[..., -1:]
    weight = alpha * keep
    mass = weight.sum(-1, keepdim=True)
    missing = 1 - mass - lost
    flags = tail_flags(tail, heads, query)
    output = weight @ value
    output = torch.where(flags.renormalize, output / (mass + lost).clamp_min(torch.finfo(dtype).tiny), output)
    for part, tokens in ((1 - flags.even, seen.expand_as(keep)), (flags.even, keep)):
        count = tokens.sum(-1, keepdim=True)
        mean = tokens.to(dtype) @ value / count.clamp_min(1)
        given = flags.centred | (flags.even > 0)
        output = torch.where(given & (count > 0), output + missing * part * mean, output)
    return Attended(output, keep.sum((0, 2, 3)))

"""The truth that every fast path is held against: plain PyTorch, one line per definition, nothing clever."""

from __future__ import annotations

import torch

from .call import AttentionCall, HeadRules, as_function
from .key_index import index_of
from .selectors import SelectorView, choose, needs_index
from .spec import Attended, keep_tensor, tail_parts
from .visibility import dense_mask, page_mean, page_starts


def attend_reference(call: AttentionCall, rules: HeadRules, dtype: torch.dtype = torch.float64) -> Attended:
    """Sparse attention by definition: sort all tokens, keep N, replace the rest by the tail.

    Args:
        call: Selectors that read an index need a Span without a window for its mask.
        rules: Of the heads.
        dtype: Precision of everything in between.

    Returns:
        Output `[B, Hq, T, Dv]` in `dtype`; a query that sees nothing gets zeros.
    """
    query, key, value, visibility = call.query, call.key, call.value, call.visibility
    scaling, softcap, sink = call.terms
    (batch, heads, queries, _), (kv_heads, keys) = query.shape, key.shape[1:3]
    index = coded = None
    if needs_index(rules.selector):
        index = index_of(key, page_starts(visibility, batch))
        coded = index.decoded(keys, key.shape[-1])
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    key = key.repeat_interleave(heads // kv_heads, dim=1)
    value = value.repeat_interleave(heads // kv_heads, dim=1)
    seen = dense_mask(visibility, queries, keys, query.device)

    def finish(dots: torch.Tensor) -> torch.Tensor:
        logits = dots * scaling
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    logits = finish(query @ key.transpose(-1, -2))
    if call.bias is not None:
        logits = logits + call.bias.to(dtype)
    seen = seen.expand(batch, 1, queries, keys)
    logits = logits.masked_fill(~seen, -torch.inf)

    budgets = keep_tensor(rules.n_keep, query.device)
    sight = SelectorView(query, logits, seen, budgets, finish, scaling, index=index, coded=coded)
    choice = choose(sight, rules.selector, kv_heads, rules.share_kv)
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
    missing, certain = 1 - mass - lost, (mass + lost).clamp_min(torch.finfo(dtype).tiny)
    mean, kept, weighted, pages, renormalize = tail_parts(rules.tail, heads, query)
    weight = torch.where(renormalize, weight / certain, weight * (1 + weighted * missing / certain))
    missing = torch.where(renormalize, 0.0, missing)
    weight = weight + kept * missing * keep / keep.sum(-1, keepdim=True).clamp_min(1)
    weight = weight + mean * missing * seen / seen.sum(-1, keepdim=True).clamp_min(1)
    weight = weight + pages * page_mean(alpha * ~keep, seen)
    output = weight @ value
    return Attended(output, keep.sum((0, 2, 3)))


reference_attention = as_function(attend_reference, "reference_attention")

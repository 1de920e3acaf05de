"""Sparse attention that autograd goes through: the same chunks of queries, nothing changed in place.

The gradient is the exact one of the function that the selection leaves: of the values and of every logit that the
softmax reads, those of discarded tokens in the missing mass too. What is chosen by comparison is a constant: the
selection, the bounds and codes of an index. Logits that a selector estimates from them have the query's gradient alone.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from .call import AttentionCall, HeadRules, Terms
from .key_index import KeyIndex
from .selectors import SelectorView, choose, needs_index, reads_codes
from .spec import Attended, keep_tensor, tail_parts
from .torch_chunked import chunk_rows, logit_of, visible_mean
from .visibility import chunk_of, page_mean, page_starts


class _Chunk(NamedTuple):
    """What holds for a chunk of queries; none of it has a gradient. See `SelectorView`."""

    seen: torch.Tensor
    budgets: torch.Tensor
    low: int
    pages: KeyIndex | None
    coded: torch.Tensor | None


def attend_differentiably(call: AttentionCall, rules: HeadRules) -> Attended:
    """`reference_attention` in fp32, with the gradient of query, key, value, bias and sink; the backward pass computes
    long prompts again."""
    query, key, value, visibility, bias = call.query, call.key, call.value, call.visibility, call.bias
    sink = call.terms.sink
    batch, heads, queries, _ = query.shape
    keys = key.shape[2]
    index = coded = None
    if needs_index(rules.selector):
        # One of its own: a cache's index may have grown, or been cut, by the time of the backward pass.
        index = KeyIndex(page_starts(visibility, batch)).extend(key)
        coded = index.decoded(keys, key.shape[-1]) if reads_codes(rules.selector) else None
    budgets = keep_tensor(rules.n_keep, query.device)
    size = chunk_rows(batch, heads, keys, query.device)
    query_, key, value = query.float(), key.float(), value.float()
    outputs, kept = [], torch.zeros(heads, dtype=torch.int64, device=query.device)
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        seen, first, end = chunk_of(visibility, start, stop, queries, keys, query.device)
        part = budgets if budgets.shape[-1] == 1 else budgets[..., start:stop]
        near = key[:, :, first:end], value[:, :, first:end]
        added = None if bias is None else bias[:, :, start:stop, first:end]
        attend = partial(_attend, call.terms, rules, _Chunk(seen, part, first, index, coded))
        # Scores of one chunk are kept for the backward pass; those of many would not fit.
        again = size < queries
        serve = partial(checkpoint, attend, use_reentrant=False, preserve_rng_state=False) if again else attend
        output, count = serve(query_[:, :, start:stop], *near, added, sink)
        outputs.append(output)
        kept += count
    return Attended(torch.cat(outputs, dim=2).to(query.dtype), kept)


def _attend(
    terms: Terms,
    rules: HeadRules,
    rows: _Chunk,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries `[B, Hq, t, D]` over `[B, Hkv, s, D]`: output `[B, Hq, t, Dv]` in fp32, and tokens kept `[Hq]`."""
    (batch, heads, queries, dim), (kv_heads, keys) = query.shape, key.shape[1:3]
    finish = logit_of(terms.scaling, terms.softcap)
    dots = query.reshape(batch, kv_heads, -1, dim) @ key.transpose(-1, -2)
    scores = finish(dots.view(batch, heads, queries, keys))
    scores = (scores if bias is None else scores + bias.float()).masked_fill(~rows.seen, -torch.inf)
    settings = finish, terms.scaling, rows.low, rows.pages, rows.coded
    sight = SelectorView(query, scores, rows.seen, rows.budgets, *settings)
    choice = choose(sight, rules.selector, kv_heads, rules.share_kv)
    parts = tail_parts(rules.tail, heads, scores)
    known = scores if choice.estimate is scores else torch.where(choice.keep > 0, scores, choice.estimate)
    known = known.masked_fill(parts.renormalize & (choice.keep == 0), -torch.inf)
    if sink is not None:
        known = torch.cat([known, sink.float()[None, :, None, None].expand(batch, heads, queries, 1)], dim=-1)
    # A softmax over nothing has no gradient, not even the zero that masks would make of it.
    blind = ~rows.seen.any(-1, keepdim=True)
    alpha = known.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)[..., :keys]
    weight = alpha * choice.keep
    rest = alpha - weight
    missing, keep = rest.sum(-1, keepdim=True), choice.keep
    tiny = torch.finfo(missing.dtype).tiny
    weight = weight * (1 + parts.weighted * missing / (1 - missing).clamp_min(tiny))
    weight = weight + keep * (parts.kept * missing / keep.sum(-1, keepdim=True).clamp_min(1))
    if bool(parts.pages.any()):
        weight = weight + parts.pages * page_mean(rest, rows.seen)
    output = (weight.reshape(batch, kv_heads, -1, keys) @ value).view(batch, heads, queries, -1)
    if bool(parts.mean.any()):
        mean = visible_mean(value, rows.seen).repeat_interleave(heads // kv_heads, dim=1)
        output = output + parts.mean * missing * mean
    return output, choice.kept.long().sum((0, 2))

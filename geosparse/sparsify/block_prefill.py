"""Block-sparse prefill: queries in blocks, keys in blocks, and of those only the ones that may matter to a block.

The per-query selection of a plan costs a score for every pair of query and key. Here a block of queries of one KV group
chooses key blocks by the bounds of their keys (as `ops.index` has them for pages, pooled over the block's queries and
the group's heads) and attends densely within them. It is an approximation of its own, for speed; decoding afterwards
follows the plan.
"""

from __future__ import annotations

import torch

from ..hf.dense import attend_dense
from ..ops import Attended, AttentionCall, HeadRules, Terms, triton

BLOCK = 64
# Chosen key tokens per kept token of the group's largest budget.
OVERSAMPLE = 4


def attend_blocks(call: AttentionCall, rules: HeadRules) -> Attended:
    """Attention of several queries within chosen key blocks, renormalised over them.

    Args:
        call: Its mask is a Span without a window, or None.
        rules: Of its budgets a KV group reads about OVERSAMPLE times the largest, besides the first and last blocks.

    Returns:
        Output `[B, Hq, T, Dv]` in the dtype of the queries, and the tokens attended to per query head, summed.
    """
    query, key, value, terms, n_keep = call.query, call.key, call.value, call.terms, rules.n_keep
    (batch, heads, queries, _), (kv_heads, keys) = query.shape, key.shape[1:3]
    groups = heads // kv_heads
    if query.is_cuda and triton.supports(query, key, value, None) and not call.needs_gradient:
        each = [-(-OVERSAMPLE * max(n_keep[head : head + groups]) // BLOCK) for head in range(0, heads, groups)]
        return triton.block_prefill(call, each, BLOCK)
    span = call.span
    output = query.new_zeros(batch, heads, queries, value.shape[-1])
    kept = torch.zeros(heads, dtype=torch.int64, device=query.device)
    for row, first in enumerate(span.starts(batch)):
        hidden = max(0, first - (keys - queries))  # queries that are padding themselves
        for kv_head in range(kv_heads):
            mine = slice(kv_head * groups, (kv_head + 1) * groups)
            ours = (query[row, mine, hidden:], key[row, kv_head, first:], value[row, kv_head, first:])
            wanted = -(-OVERSAMPLE * max(n_keep[mine]) // BLOCK)
            output[row, mine, hidden:], count = _group(*ours, wanted, terms, mine)
            kept[mine] += count
    return Attended(output, kept)


def _group(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, wanted: int, terms: Terms, heads: slice
) -> tuple[torch.Tensor, int]:
    """One KV group: `[G, T, D]` over `[S, D]`, the last query at the last key; also the tokens that each head read."""
    (groups, queries, _), keys = query.shape, key.shape[0]
    sinks = None if terms.sink is None else terms.sink[heads]
    terms = terms._replace(sink=sinks)
    low, high = _bounds(key.detach())  # what is chosen by comparison has no gradient
    output = query.new_empty(groups, queries, value.shape[-1])
    read = 0
    for start in range(0, queries, BLOCK):
        stop = min(start + BLOCK, queries)
        rows, seen = query[:, start:stop], keys - queries + stop
        before = (keys - queries + start) // BLOCK  # whole blocks that every query of this block sees
        picks = _choose(rows.detach(), low[:before], high[:before], wanted)
        places = (picks[:, None] * BLOCK + torch.arange(BLOCK, device=key.device, dtype=torch.int64)).flatten()
        places = torch.cat([places, torch.arange(before * BLOCK, seen, device=key.device, dtype=torch.int64)])
        mask = places <= torch.arange(seen - (stop - start), seen, device=key.device, dtype=torch.int64)[:, None]
        part = attend_dense(
            AttentionCall(rows[None], key[places][None, None], value[places][None, None], mask[None, None], None, terms)
        )
        output[:, start:stop] = part[0]
        read += int(mask.sum())
    return output, read


def _bounds(key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest key per channel of each whole block, `[S // BLOCK, D]` fp32."""
    blocks = key[: len(key) // BLOCK * BLOCK].float().view(-1, BLOCK, key.shape[-1])
    return blocks.amin(1), blocks.amax(1)


def _choose(query: torch.Tensor, low: torch.Tensor, high: torch.Tensor, wanted: int) -> torch.Tensor:
    """The first block and the `wanted` of largest bound over the queries `[G, t, D]`, ascending."""
    blocks = len(low)
    if blocks <= wanted + 1:
        return torch.arange(blocks, device=query.device, dtype=torch.int64)
    rows = query.float().flatten(0, 1)
    bound = (rows.clamp_min(0) @ high.T + rows.clamp_max(0) @ low.T).amax(0)
    bound[0] = torch.inf
    return bound.topk(wanted + 1).indices.sort().values

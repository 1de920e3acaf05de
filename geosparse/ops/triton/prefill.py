"""Several queries at once in blocks (`sparsify.block_prefill`): bounds and choices per KV group, then one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..buffers import empty, numbers, zeros
from ..call import AttentionCall
from ..spec import Attended
from .launch import launch
from .library import precision
from .stages import width_of

TILE = 64  # key blocks whose bounds a program scores


def block_prefill(call: AttentionCall, wanted: Sequence[int], block: int) -> Attended:
    """Attention of several queries within chosen key blocks, renormalised over them.

    Args:
        call: Its mask is a Span without a window, or None.
        wanted: Per KV head, how many blocks a block of queries chooses besides the first and the last ones.
        block: Tokens of a block, a power of two from 16 on.

    Returns:
        Output `[B, Hq, T, Dv]` in the dtype of `query`, and the tokens attended to per query head, summed.
    """
    from .kernels.blocks import attend_blocks

    query, key, value = call.query, call.key, call.value
    scaling, softcap, sink = call.terms
    (batch, heads, queries, dim), (_, kv_heads, keys, value_dim) = query.shape, value.shape
    first = call.span.starts(batch)
    starts = numbers(list(first), torch.int32, query.device)
    low, high = _bounds(key, first, block)
    query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    picks, counts = _choose(query, low, high, starts, keys, wanted, block)
    output = zeros((batch, heads, queries, value_dim), query.dtype, query.device)
    query_blocks = counts.shape[-1]
    launch(
        attend_blocks, (query_blocks, batch * heads),
        query, key, value, starts, picks, counts, starts if sink is None else sink.contiguous(), output,
        queries, keys, scaling, softcap or 1.0, *query.stride()[:3], *key.stride()[:3], *value.stride()[:3],
        query_blocks, picks.shape[-1],
        KV=kv_heads, G=heads // kv_heads, D=dim, DV=value_dim, DP=width_of(dim), DVP=width_of(value_dim),
        ROWS=block, CAPPED=softcap is not None, SUNK=sink is not None, PRECISION=precision(key.dtype),
    )  # fmt: skip
    return Attended(output, _tokens_read(counts, starts, queries, keys, block).repeat_interleave(heads // kv_heads))


def _choose(
    query: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    first: torch.Tensor,
    keys: int,
    wanted: Sequence[int],
    block: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The key blocks that each block of queries chose, int32 `[B, Hkv, Tb, n]` ascending, and how many."""
    from .kernels.blocks import score_blocks

    (batch, heads, queries, dim), (_, kv_heads, key_blocks, _) = query.shape, low.shape
    query_blocks = -(-queries // block)
    scores = empty((batch, kv_heads, query_blocks, key_blocks), torch.float32, query.device)
    launch(
        score_blocks, (batch * kv_heads, query_blocks, -(-key_blocks // TILE)),
        query, low, high, first, scores,
        queries, keys, *query.stride()[:3], *low.stride()[:2], query_blocks, key_blocks,
        KV=kv_heads, G=heads // kv_heads, D=dim, DP=width_of(dim),
        BLOCK=block, TILE=TILE, PRECISION=precision(low.dtype),
    )  # fmt: skip
    best = scores.topk(min(max(wanted) + 1, key_blocks), dim=-1)
    allowed = torch.tensor(list(wanted), device=query.device, dtype=torch.int64)[None, :, None, None] + 1
    chosen = (best.values > -torch.inf) & (
        torch.arange(best.values.shape[-1], device=query.device, dtype=torch.int64) < allowed
    )
    picks = torch.where(chosen, best.indices, key_blocks).sort(-1).values
    return picks.to(torch.int32), chosen.sum(-1, dtype=torch.int32)


def _bounds(key: torch.Tensor, first: Sequence[int], block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest and largest key per channel of each whole block `[B, Hkv, Sb, D]`, blocks counted from `first` on."""
    batch, kv_heads, keys, dim = key.shape
    shape = (2, batch, kv_heads, max(1, (keys - min(first)) // block), dim)
    low, high = zeros(shape, key.dtype, key.device).unbind()
    for start in set(first):
        rows = [row for row, other in enumerate(first) if other == start] if len(set(first)) > 1 else slice(None)
        count = (keys - start) // block
        if count:
            seen = key[rows, :, start : start + count * block]
            blocks = seen.reshape(len(seen), kv_heads, count, block, dim)
            low[rows, :, :count], high[rows, :, :count] = blocks.amin(3), blocks.amax(3)
    return low, high


def _tokens_read(counts: torch.Tensor, first: torch.Tensor, queries: int, keys: int, block: int) -> torch.Tensor:
    """Tokens that the queries of each KV head attended to, int64 `[Hkv]`."""
    place = torch.arange(queries, device=counts.device, dtype=torch.int64)
    hidden = (first - (keys - queries)).clamp(0, queries)[:, None]
    row = place - hidden  # of the queries that are not padding
    token = (keys - first)[:, None] - (queries - hidden) + row
    start = token - row % block  # the token of the first query of the block
    near = torch.where(row >= 0, token + 1 - start // block * block, 0).sum()
    blocks = (row.clamp_min(0) // block)[:, None].expand(-1, counts.shape[1], -1)
    far = counts.long().gather(2, blocks) * block * (row >= 0)[:, None]
    return near + far.sum((0, 2))

"""Several queries at once, each with its own exact top-N: one kernel that scores the keys again in every pass."""

from __future__ import annotations

import torch

from ..buffers import empty, numbers, zeros
from ..call import AttentionCall, HeadRules
from ..spec import Attended, per_head
from ..tails import shares_of
from .decode import table_of
from .launch import launch
from .library import precision
from .stages import width_of

ROWS, WIDE_ROWS = 64, 32  # queries of a program; of one with more than 128 channels, for the sake of shared memory
TILE = 64  # keys of a step
ROOM = 256  # scores of a query that a program writes down
SCRATCH_BYTES = 64 << 20


def exact_prefill(
    call: AttentionCall,
    rules: HeadRules,
    coded: torch.Tensor | None = None,
    room: int = ROOM,
    rows: int | None = None,
) -> Attended:
    """`reference_attention` with the N highest exact or coded scores, under plain causality with left padding.

    Args:
        call: Its mask is a Span without a window, or None.
        rules: Of the heads; what ranks the tokens is `coded`.
        coded: `[B, Hkv, S, D]` in the dtype of the keys, the keys as the index has them; None: exact scores.
        room: Scores that a program writes down for a query, a power of two; memory is `SCRATCH_BYTES` at most.
        rows: Queries of a program, a power of two from 16 on; None for ROWS or WIDE_ROWS.

    Returns:
        Output `[B, Hq, T, Dv]` in the dtype of `query`, and the tokens kept per query head, summed.
    """
    from .kernels.exact import attend_exactly

    query, key, value, n_keep = call.query, call.key, call.value, rules.n_keep
    scaling, softcap, sink = call.terms
    first = call.span.starts(query.shape[0])
    (batch, heads, queries, dim), (_, kv_heads, keys, value_dim) = query.shape, value.shape
    device = query.device
    rows = rows or (ROWS if max(dim, value_dim) <= 128 else WIDE_ROWS)
    query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    starts = numbers(list(first), torch.int32, device)
    shares = [shares_of(tail) for tail in per_head(rules.tail, heads)]
    tails = table_of(shares, device)
    budgets = (
        n_keep
        if isinstance(n_keep, torch.Tensor)
        else torch.tensor(list(n_keep), dtype=torch.int64, device="cpu")[None, :, None]
    )
    budgets = budgets.to(device, torch.int32).expand(batch, heads, queries)
    centred = any(each.mean for each in shares)
    prefix = _value_prefix(value, first) if centred else zeros((1,), torch.float32, device)
    output = zeros((batch, heads, queries, value_dim), query.dtype, device)
    blocks = -(-queries // rows)
    kept = zeros((batch, heads, blocks), torch.int32, device)
    each = batch * heads * rows * room * 4
    together = max(1, min(blocks, SCRATCH_BYTES // each))
    scratch = empty((together * each // 4,), torch.float32, device)
    codes = key if coded is None else coded
    for start in range(0, blocks, together):
        launch(
            attend_exactly, (min(together, blocks - start), batch * heads),
            query, key, value, codes, starts, budgets, tails, prefix,
            starts if sink is None else sink.contiguous(), scratch, output, kept,
            start, queries, keys, scaling, softcap or 1.0,
            *query.stride()[:3], *key.stride()[:3], *value.stride()[:3], *codes.stride()[:3],
            blocks, prefix.shape[2] if prefix.dim() == 4 else 1, *budgets.stride(),
            KV=kv_heads, G=heads // kv_heads, D=dim, DV=value_dim, DP=width_of(dim), DVP=width_of(value_dim),
            ROWS=rows, TILE=TILE, ROOM=room, EVEN=any(each.kept for each in shares),
            PAGED=any(each.pages for each in shares), CODED=coded is not None, CAPPED=softcap is not None,
            SUNK=sink is not None, PRECISION=precision(key.dtype),
        )  # fmt: skip
    return Attended(output, kept.sum((0, 2), dtype=torch.int64))


def _value_prefix(value: torch.Tensor, first: tuple[int, ...]) -> torch.Tensor:
    """Sums of the values before each whole tile, tiles counted from `first` on, fp32 `[B, Hkv, tiles + 1, Dv]`."""
    batch, kv_heads, keys, dim = value.shape
    sums = zeros((batch, kv_heads, (keys - min(first)) // TILE + 1, dim), torch.float32, value.device)
    for row, start in enumerate(first):
        count = (keys - start) // TILE
        if count > 0:
            tiles = value[row, :, start : start + count * TILE].view(kv_heads, count, TILE, dim)
            sums[row, :, 1 : count + 1] = tiles.sum(2, dtype=torch.float32).cumsum(1)
    return sums


__all__ = ["exact_prefill"]

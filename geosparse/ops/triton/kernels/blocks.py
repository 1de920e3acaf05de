"""Prefill in blocks: bounds of key blocks for blocks of queries, and attention over the chosen ones.

Tokens count from the first visible one. Query i of those that are not padding is token `offset + i`; a block of queries
chooses among the whole blocks of keys that all of it sees, and reads everything from there to itself besides.
"""

import triton
import triton.language as tl

from .common import NEGATIVE_INFINITY, logit_of, product
from .tuning import tuned


@triton.jit
def queries_of(first, b, queries, keys):
    """Queries of batch row b that are padding, and the token of the first that is not."""
    before = tl.load(first + b)
    hidden = tl.minimum(tl.maximum(before - (keys - queries), 0), queries)
    return hidden, (keys - before) - (queries - hidden)


@triton.jit
def score_blocks(
    q, low, high, first, out,
    queries, keys, q_b, q_h, q_s, x_b, x_h, query_blocks, key_blocks,
    KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BLOCK: tl.constexpr, TILE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The largest dot product that a block of queries can have with each block of keys, `[B, Hkv, Tb, Sb]`.

    The first block is always wanted, so that it gets infinity; blocks that not every query sees whole get -inf.
    """
    pair, block = tl.program_id(0), tl.program_id(1)
    b, h = pair // KV, pair % KV
    hidden, offset = queries_of(first, b, queries, keys)
    usable = (offset + block * BLOCK) // BLOCK
    row = block * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, DP)
    column = tl.program_id(2) * TILE + tl.arange(0, TILE)
    inside = (column < key_blocks) & (column < usable)
    place = b.to(tl.int64) * x_b + h.to(tl.int64) * x_h + column[None, :].to(tl.int64) * D + d[:, None]
    best = tl.full([TILE], NEGATIVE_INFINITY, tl.float32)
    if tl.program_id(2) * TILE < usable:
        bottom = tl.load(low + place, mask=inside[None, :] & (d < D)[:, None], other=0.0)
        top = tl.load(high + place, mask=inside[None, :] & (d < D)[:, None], other=0.0)
        asked = row < queries - hidden
        for g in range(0, G):
            at = b.to(tl.int64) * q_b + (h * G + g).to(tl.int64) * q_h + (hidden + row)[:, None].to(tl.int64) * q_s
            query = tl.load(q + at + d[None, :], mask=asked[:, None] & (d < D)[None, :], other=0.0)
            zero = tl.zeros_like(query)
            bound = product(tl.maximum(query, zero), top, PRECISION)
            bound += product(tl.minimum(query, zero), bottom, PRECISION)
            best = tl.maximum(best, tl.max(tl.where(asked[:, None], bound, NEGATIVE_INFINITY), axis=0))
    best = tl.where(inside, tl.where(column == 0, float("inf"), best), NEGATIVE_INFINITY)
    at = (pair * query_blocks + block).to(tl.int64) * key_blocks + column
    tl.store(out + at, best, mask=column < key_blocks)


@triton.jit
def add_keys(
    query, keys, values, largest, total, output, token, seen, limit, k_s, v_s, scaling, softcap,
    D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of online softmax over the keys `token` `[K]`; query i sees those up to `limit[i]`."""
    d = tl.arange(0, DP)
    e = tl.arange(0, DVP)
    at = token.to(tl.int64)
    key = tl.load(keys + at[None, :] * k_s + d[:, None], mask=seen[None, :] & (d < D)[:, None], other=0.0)
    value = tl.load(values + at[:, None] * v_s + e[None, :], mask=seen[:, None] & (e < DV)[None, :], other=0.0)
    logits = logit_of(product(query, key, PRECISION), scaling, softcap, CAPPED)
    logits = tl.where(seen[None, :] & (token[None, :] <= limit[:, None]), logits, NEGATIVE_INFINITY)
    both = tl.maximum(largest, tl.max(logits, axis=1))
    safe = tl.where(both == NEGATIVE_INFINITY, 0.0, both)
    shrink = tl.exp(largest - safe)
    weight = tl.exp(logits - safe[:, None])
    total = total * shrink + tl.sum(weight, axis=1)
    return both, total, output * shrink[:, None] + product(weight, value, PRECISION)


@tuned((1,), ("D", "DV"), warps=(4, 8))
@triton.jit
def attend_blocks(
    q, k, v, first, picks, counts, sink, out,
    queries, keys, scaling, softcap, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, query_blocks, picks_row,
    KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    ROWS: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's attention of a block of ROWS queries over the chosen blocks of ROWS keys and the last ones."""
    block, head = tl.program_id(0), tl.program_id(1)
    b, h = head // (KV * G), head % (KV * G)
    hidden, offset = queries_of(first, b, queries, keys)
    row = block * ROWS + tl.arange(0, ROWS)
    asked = row < queries - hidden
    if block * ROWS < queries - hidden:
        d = tl.arange(0, DP)
        e = tl.arange(0, DVP)
        at = b.to(tl.int64) * q_b + h.to(tl.int64) * q_h + (hidden + row)[:, None].to(tl.int64) * q_s
        query = tl.load(q + at + d[None, :], mask=asked[:, None] & (d < D)[None, :], other=0.0)
        before = tl.load(first + b).to(tl.int64)
        own_keys = k + b.to(tl.int64) * k_b + (h // G).to(tl.int64) * k_h + before * k_s
        own_values = v + b.to(tl.int64) * v_b + (h // G).to(tl.int64) * v_h + before * v_s
        limit = offset + row
        largest = tl.full([ROWS], NEGATIVE_INFINITY, tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        if SUNK:
            largest = tl.zeros([ROWS], tl.float32) + tl.load(sink + h).to(tl.float32)
            total = tl.full([ROWS], 1.0, tl.float32)
        output = tl.zeros([ROWS, DVP], tl.float32)
        chosen = (b * KV + h // G) * query_blocks + block
        for i in range(0, tl.load(counts + chosen)):
            token = tl.load(picks + chosen.to(tl.int64) * picks_row + i) * ROWS + tl.arange(0, ROWS)
            largest, total, output = add_keys(
                query, own_keys, own_values, largest, total, output, token, token >= 0, limit, k_s, v_s,
                scaling, softcap, D, DV, DP, DVP, CAPPED, PRECISION,
            )  # fmt: skip
        stop = tl.minimum(offset + (block + 1) * ROWS, offset + queries - hidden)
        for start in range((offset + block * ROWS) // ROWS * ROWS, stop, ROWS):
            token = start + tl.arange(0, ROWS)
            largest, total, output = add_keys(
                query, own_keys, own_values, largest, total, output, token, token < stop, limit, k_s, v_s,
                scaling, softcap, D, DV, DP, DVP, CAPPED, PRECISION,
            )  # fmt: skip
        place = (head.to(tl.int64) * queries + hidden + row)[:, None] * DV + e[None, :]
        tl.store(
            out + place, (output / total[:, None]).to(out.dtype.element_ty), mask=asked[:, None] & (e < DV)[None, :]
        )

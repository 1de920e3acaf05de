"""Scores of pages from the bounds of their keys."""

import triton
import triton.language as tl

from ...key_index import SPREAD as INDEX_SPREAD
from .common import PAGE, logit_of, product, visible_of
from .tuning import tuned

SPREAD = tl.constexpr(INDEX_SPREAD)


@tuned((32, 64), ("G", "D", "MEAN"))
@triton.jit
def score_bounds(
    q, low, high, first, length, bound, mean,
    scaling, softcap, q_b, q_h, x_b, x_h, row,
    KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    GP: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    MEAN: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Per page the largest logit there can be and, if MEAN, the log of the mean of exp(logit): `[B, Hq, row]` each.

    A program does every n-th BLOCK of pages for the G heads of one KV head. Only complete pages are written.
    """
    pair = tl.program_id(0)
    b, h = pair // KV, pair % KV
    complete = visible_of(first, length, b) // PAGE
    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    query = tl.load(
        q + b.to(tl.int64) * q_b + (h * G + g)[:, None] * q_h + d[None, :],
        mask=(g < G)[:, None] & (d < D)[None, :],
        other=0.0,
    ).to(tl.float32)
    for start in range(tl.program_id(1) * BLOCK, complete, tl.num_programs(1) * BLOCK):
        page = start + tl.arange(0, BLOCK)
        inside = page < complete
        place = b.to(tl.int64) * x_b + h.to(tl.int64) * x_h + page[None, :].to(tl.int64) * WIDTH + d[:, None]
        seen = inside[None, :] & (d < D)[:, None]
        bottom = tl.load(low + place, mask=seen, other=0.0).to(tl.float32)
        top = tl.load(high + place, mask=seen, other=0.0).to(tl.float32)
        most = product(tl.maximum(query, 0.0), top, PRECISION) + product(tl.minimum(query, 0.0), bottom, PRECISION)
        out = (b * KV * G + h * G + g).to(tl.int64)[:, None] * row + page[None, :]
        written = (g < G)[:, None] & inside[None, :]
        tl.store(bound + out, most * scaling, mask=written)
        if MEAN:
            centre = product(query, (bottom + top) * 0.5, PRECISION)
            half = (top - bottom) * 0.5
            variance = SPREAD * product(query * query, half * half, PRECISION)
            logit = logit_of(centre, scaling, softcap, CAPPED) + variance * (0.5 * scaling * scaling)
            tl.store(mean + out, logit, mask=written)

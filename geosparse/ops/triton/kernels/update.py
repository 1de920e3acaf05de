"""New tokens in a cache: their keys and values, the sum of values, and the index and mean values of pages."""

import triton
import triton.language as tl

from ...key_index import HALF_MAX as INDEX_MOST
from .common import PAGE, visible_of

HALF_MAX = tl.constexpr(INDEX_MOST)
FLOAT_MAX = tl.constexpr(3.4028234663852886e38)
# Adding and taking it away rounds fp32 below 2^22 to whole numbers, halves to even.
ROUNDER = tl.constexpr(12582912.0)


@triton.jit
def encode_page(keys, low, high, codes, page, WIDTH: tl.constexpr, DP: tl.constexpr):
    """Write bounds and 4-bit codes of a page of keys `[PAGE, DP]` fp32; pointers are of one batch row and KV head."""
    EIGHTHS: tl.constexpr = DP // 8
    keys = tl.where(keys != keys, 0.0, keys)
    keys = tl.minimum(tl.maximum(keys, -FLOAT_MAX), FLOAT_MAX)
    bottom = tl.minimum(tl.maximum(tl.min(keys, axis=0), -HALF_MAX), HALF_MAX).to(tl.float16)
    top = tl.minimum(tl.maximum(tl.max(keys, axis=0), -HALF_MAX), HALF_MAX).to(tl.float16)
    base = bottom.to(tl.float32)
    step = tl.math.div_rn(top.to(tl.float32) - base, tl.full([DP], 15.0, tl.float32))
    step = tl.where(step > 0, step, 1.0)
    steps = tl.math.div_rn(keys - base[None, :], tl.broadcast_to(step[None, :], keys.shape))
    code = ((tl.minimum(tl.maximum(steps, 0.0), 15.0) + ROUNDER) - ROUNDER).to(tl.int32)
    nibbles = tl.reshape(code, (PAGE, EIGHTHS, 8)) << (4 * tl.arange(0, 8))[None, None, :]
    words = tl.sum(nibbles, axis=2)
    d = tl.arange(0, DP)
    j = tl.arange(0, EIGHTHS)
    slot = tl.arange(0, PAGE)
    tl.store(low + page.to(tl.int64) * WIDTH + d, bottom, mask=d < WIDTH)
    tl.store(high + page.to(tl.int64) * WIDTH + d, top, mask=d < WIDTH)
    place = page.to(tl.int64) * (WIDTH // 8 * PAGE) + j[None, :] * PAGE + slot[:, None]
    tl.store(codes + place, words, mask=(j < WIDTH // 8)[None, :] & (slot < PAGE)[:, None])


@triton.jit
def encode_pages(
    k, low, high, codes, first, length,
    k_b, k_h, k_s, x_b, x_h, c_b, c_h,
    KV: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """The index of every complete page of a cache, a program each."""
    pair, page = tl.program_id(0), tl.program_id(1)
    b, h = (pair // KV).to(tl.int64), (pair % KV).to(tl.int64)
    if page < visible_of(first, length, b) // PAGE:
        d = tl.arange(0, DP)
        at = (tl.load(first + b) + page * PAGE + tl.arange(0, PAGE)).to(tl.int64)
        keys = tl.load(k + b * k_b + h * k_h + at[:, None] * k_s + d[None, :], mask=(d < D)[None, :], other=0.0)
        own = b * x_b + h * x_h
        encode_page(keys.to(tl.float32), low + own, high + own, codes + b * c_b + h * c_h, page, WIDTH, DP)


@triton.jit
def store_mean(values, mean, fits):
    """Write the mean of a page of values `[PAGE, DVP]` fp32 where it `fits`, within what fp16 holds."""
    found = tl.sum(values, axis=0) / PAGE
    found = tl.where(found != found, found, tl.minimum(tl.maximum(found, -HALF_MAX), HALF_MAX))
    tl.store(mean, found.to(tl.float16), mask=fits)


@triton.jit
def average_pages(
    v, means, first, length, v_b, v_h, v_s, y_b, y_h,
    KV: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr,
):  # fmt: skip
    """The mean value of every complete page of a cache, a program each."""
    pair, page = tl.program_id(0), tl.program_id(1)
    b, h = (pair // KV).to(tl.int64), (pair % KV).to(tl.int64)
    if page < visible_of(first, length, b) // PAGE:
        e = tl.arange(0, DVP)
        at = (tl.load(first + b) + page * PAGE + tl.arange(0, PAGE)).to(tl.int64)
        values = tl.load(v + b * v_b + h * v_h + at[:, None] * v_s + e[None, :], mask=(e < DV)[None, :], other=0.0)
        store_mean(values.to(tl.float32), means + b * y_b + h * y_h + page.to(tl.int64) * DV + e, e < DV)


@triton.jit
def append_token(
    new_k, new_v, k, v, value_sum, means, low, high, codes, first, length,
    n_b, n_h, m_b, m_h, k_b, k_h, k_s, v_b, v_h, v_s, y_b, y_h, x_b, x_h, c_b, c_h,
    KV: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
):  # fmt: skip
    """One token per row, written at `length - 1`; where it completes a page, the index and the means take that in."""
    pair = tl.program_id(0)
    b, h = (pair // KV).to(tl.int64), (pair % KV).to(tl.int64)
    d = tl.arange(0, DP)
    e = tl.arange(0, DVP)
    last = (tl.load(length + b) - 1).to(tl.int64)
    key = tl.load(new_k + b * n_b + h * n_h + d, mask=d < D, other=0.0)
    value = tl.load(new_v + b * m_b + h * m_h + e, mask=e < DV, other=0.0)
    keys = k + b * k_b + h * k_h
    tl.store(keys + last * k_s + d, key, mask=d < D)
    values = v + b * v_b + h * v_h
    tl.store(values + last * v_s + e, value, mask=e < DV)
    sums = value_sum + pair.to(tl.int64) * DV + e
    tl.store(sums, tl.load(sums, mask=e < DV, other=0.0) + value.to(tl.float64), mask=e < DV)
    visible = visible_of(first, length, b)
    if (visible > 0) & (visible % PAGE == 0):
        slot = tl.arange(0, PAGE)
        at = last - (PAGE - 1) + slot
        old = tl.load(
            keys + at[:, None] * k_s + d[None, :], mask=(slot < PAGE - 1)[:, None] & (d < D)[None, :], other=0.0
        )
        page = tl.where((slot < PAGE - 1)[:, None], old, key[None, :]).to(tl.float32)
        own = b * x_b + h * x_h
        encode_page(page, low + own, high + own, codes + b * c_b + h * c_h, visible // PAGE - 1, WIDTH, DP)
        old = tl.load(
            values + at[:, None] * v_s + e[None, :], mask=(slot < PAGE - 1)[:, None] & (e < DV)[None, :], other=0.0
        )
        page = tl.where((slot < PAGE - 1)[:, None], old, value[None, :]).to(tl.float32)
        store_mean(page, means + b * y_b + h * y_h + (visible // PAGE - 1).to(tl.int64) * DV + e, e < DV)

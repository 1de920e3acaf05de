"""Scores of tokens, from their keys or from the keys' 4-bit codes."""

import triton
import triton.language as tl

from .common import LISTED, NEGATIVE_INFINITY, PAGE, logit_of, product, row_size, visible_of
from .tuning import tuned


@triton.jit
def decoded(low, high, codes, base, code_base, page, slot, inside, WIDTH: tl.constexpr, DP: tl.constexpr):
    """Keys `[T, DP]` fp32 as the index has them, of the tokens `slot` of `page`."""
    EIGHTHS: tl.constexpr = DP // 8
    d = tl.arange(0, DP)
    j = tl.arange(0, EIGHTHS)
    words = tl.load(
        codes + code_base + (page.to(tl.int64) * (WIDTH // 8 * PAGE) + slot)[:, None] + j[None, :] * PAGE,
        mask=inside[:, None] & (j < WIDTH // 8)[None, :],
        other=0,
    )
    nibbles = (words[:, :, None] >> (4 * tl.arange(0, 8))[None, None, :]) & 15
    code = tl.reshape(nibbles, (words.shape[0], DP)).to(tl.float32)
    place = base + page.to(tl.int64)[:, None] * WIDTH + d[None, :]
    seen = inside[:, None] & (d < WIDTH)[None, :]
    bottom = tl.load(low + place, mask=seen, other=0.0).to(tl.float32)
    top = tl.load(high + place, mask=seen, other=0.0).to(tl.float32)
    return code * ((top - bottom) * (1.0 / 15)) + bottom


@tuned((32, 64, 128), ("G", "D", "ROWS", "CODED"))
@triton.jit(do_not_specialize=["pages_row"])
def score_tokens(
    q, k, low, high, codes, first, length, pages, words, count, scores,
    scaling, softcap, q_b, q_h, k_b, k_h, k_s, x_b, x_h, c_b, c_h, pages_row, row,
    KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    GP: tl.constexpr, DP: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, CODED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Logits `[B, Hq, row]` of all visible tokens, or of the tokens of the listed pages.

    In listed pages a head gets -inf where the page is not its own, or the token not visible. If CODED, tokens of
    complete pages are scored as the index has them. PRECISION is that of products with decoded keys, EXACT that of
    products with keys.
    """
    pair = tl.program_id(0)
    b, h = pair // KV, pair % KV
    size = row_size(first, length, count, b, pair, ROWS)
    visible = visible_of(first, length, b)
    complete = visible // PAGE * PAGE
    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    query = tl.load(
        q + b.to(tl.int64) * q_b + (h * G + g)[:, None] * q_h + d[None, :],
        mask=(g < G)[:, None] & (d < D)[None, :],
        other=0.0,
    )
    for start in range(tl.program_id(1) * BLOCK, size, tl.num_programs(1) * BLOCK):
        place = start + tl.arange(0, BLOCK)
        inside = place < size
        token = place
        word = tl.full([BLOCK], -1, tl.int32)
        if ROWS == LISTED:
            entry = pair * pages_row + place // PAGE
            token = tl.load(pages + entry, mask=inside, other=0) * PAGE + place % PAGE
            word = tl.load(words + entry, mask=inside, other=0)
        seen = inside & (token < visible)
        dots = tl.zeros([GP, BLOCK], tl.float32)
        exact = seen
        if CODED:
            exact = seen & (token >= complete)
            coded = seen & (token < complete)
            near = decoded(
                low, high, codes,
                b.to(tl.int64) * x_b + h.to(tl.int64) * x_h, b.to(tl.int64) * c_b + h.to(tl.int64) * c_h,
                token // PAGE, token % PAGE, coded, WIDTH, DP,
            )  # fmt: skip
            dots += product(query.to(tl.float32), tl.trans(near), PRECISION)
        if tl.max(exact.to(tl.int32), axis=0) > 0:
            at = (tl.load(first + b) + token).to(tl.int64)
            key = tl.load(
                k + b.to(tl.int64) * k_b + h.to(tl.int64) * k_h + at[None, :] * k_s + d[:, None],
                mask=exact[None, :] & (d < D)[:, None],
                other=0.0,
            )
            dots += product(query, key, EXACT)
        mine = seen[None, :] & (((word[None, :] >> g[:, None]) & 1) > 0)
        logits = tl.where(mine, logit_of(dots, scaling, softcap, CAPPED), NEGATIVE_INFINITY)
        out = (b * KV * G + h * G + g).to(tl.int64)[:, None] * row + place[None, :]
        tl.store(scores + out, logits, mask=(g < G)[:, None] & inside[None, :])

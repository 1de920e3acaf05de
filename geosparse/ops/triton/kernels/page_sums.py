"""Sums of the mean values of pages, each with the mass of those of its tokens that a head does not keep."""

import triton
import triton.language as tl

from .common import LISTED, NEGATIVE_INFINITY, PAGE, TOKENS, is_kept, product, visible_of
from .lists import is_ranked
from .tuning import tuned


@triton.jit
def add_values(largest, output, logits, rows, EACH: tl.constexpr, TIMES: tl.constexpr, PRECISION: tl.constexpr):
    """Largest logit `[GP]` and sums of exp(logit - largest) times `rows` `[R, DVP]`, with `logits` `[GP, R * EACH]`
    added: EACH of them for a row, and TIMES each."""
    both = tl.maximum(largest, tl.max(logits, axis=1))
    safe = tl.where(both == NEGATIVE_INFINITY, 0.0, both)
    weight = tl.exp(logits - safe[:, None]) * TIMES
    if EACH > 1:
        weight = tl.sum(tl.reshape(weight, (weight.shape[0], weight.shape[1] // EACH, EACH)), axis=2)
    return both, output * tl.exp(largest - safe)[:, None] + product(weight, rows, PRECISION)


@tuned((16, 32), ("G", "DV", "ROWS", "RANKED"))
@triton.jit(do_not_specialize=["budgets_b", "pages_row"])
def spread_pages(
    scores, v, means, first, length, tails, budgets, least, last_tie,
    bound, page_mean, page_least, page_last, pages, count, part, part_max,
    v_b, v_h, v_s, m_b, m_h, row, bounds_row, pages_row, budgets_b,
    KV: tl.constexpr, G: tl.constexpr, DV: tl.constexpr, GP: tl.constexpr, DVP: tl.constexpr,
    ROWS: tl.constexpr, RANKED: tl.constexpr, SINKS: tl.constexpr, PRECISION: tl.constexpr, EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Per head of a KV group the sum of exp(logit) over tokens that it does not keep, times their page's mean value,
    or their own value in what is no complete page: `[B, Hq, programs, DV]`, relative to `part_max`.

    A program does every n-th BLOCK of pages; the first one what is no complete page. ROWS says what `scores` are of:
    all TOKENS, or those of the LISTED pages, where a head's other pages weigh what `page_mean` says. If RANKED, a head
    keeps its first and last tokens, else those above its threshold. Groups without a share for pages write nothing.
    """
    pair, split, splits = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    b, h = pair // KV, pair % KV
    visible = visible_of(first, length, b)
    complete = visible // PAGE
    g = tl.arange(0, GP)
    e = tl.arange(0, DVP)
    is_head = g < G
    head = (b * KV * G + h * G + g).to(tl.int64)
    share = tl.load(tails + (h * G + g) * 4 + 3, mask=is_head, other=0.0)
    if tl.max((share != 0.0).to(tl.int32), axis=0) > 0:
        if RANKED:
            n = tl.load(budgets + b * budgets_b + h * G + g, mask=is_head, other=0)
        else:
            threshold = tl.load(least + head, mask=is_head, other=0)
            last = tl.load(last_tie + head, mask=is_head, other=0)
        largest = tl.full([GP], NEGATIVE_INFINITY, tl.float32)
        output = tl.zeros([GP, DVP], tl.float32)
        own = means + b.to(tl.int64) * m_b + h.to(tl.int64) * m_h
        size = 0
        if ROWS == LISTED:
            size = tl.load(count + pair)

        # What is no complete page; in a list it stands last.
        slot = tl.arange(0, PAGE)
        recent = complete * PAGE + slot
        spot = recent
        if ROWS == LISTED:
            spot = (size - 1) * PAGE + slot
        fresh = (recent < visible) & (split == 0)
        own_value = tl.load(
            v + b.to(tl.int64) * v_b + h.to(tl.int64) * v_h + (tl.load(first + b) + recent).to(tl.int64)[:, None] * v_s
            + e[None, :],
            mask=fresh[:, None] & (e < DV)[None, :],
            other=0.0,
        )  # fmt: skip
        logits = tl.load(
            scores + head[:, None] * row + spot[None, :],
            mask=is_head[:, None] & fresh[None, :],
            other=NEGATIVE_INFINITY,
        )
        if RANKED:
            held = is_ranked(recent, n, visible, SINKS)
        else:
            held = is_kept(logits, spot[None, :], threshold[:, None], last[:, None])
        logits = tl.where(held, NEGATIVE_INFINITY, logits)
        largest, output = add_values(largest, output, logits, own_value, 1, 1, EXACT)

        for start in range(split * BLOCK, complete, splits * BLOCK):
            page = start + tl.arange(0, BLOCK)
            rows = tl.load(
                own + page.to(tl.int64)[:, None] * DV + e[None, :],
                mask=(page < complete)[:, None] & (e < DV)[None, :],
                other=0.0,
            )
            if ROWS == TOKENS:
                token = start * PAGE + tl.arange(0, BLOCK * PAGE)
                there = is_head[:, None] & (token < complete * PAGE)[None, :]
                score = tl.load(scores + head[:, None] * row + token[None, :], mask=there, other=NEGATIVE_INFINITY)
                if RANKED:
                    mine = is_ranked(token, n, visible, SINKS)
                else:
                    mine = is_kept(score, token[None, :], threshold[:, None], last[:, None])
                largest, output = add_values(
                    largest, output, tl.where(mine, NEGATIVE_INFINITY, score), rows, PAGE, 1, PRECISION
                )
            else:
                there = is_head[:, None] & (page < complete)[None, :]
                at = head[:, None] * bounds_row + page[None, :]
                top = tl.load(bound + at, mask=there, other=NEGATIVE_INFINITY)
                highest = tl.load(page_least + head, mask=is_head, other=0)
                until = tl.load(page_last + head, mask=is_head, other=0)
                there = there & ~is_kept(top, page[None, :], highest[:, None], until[:, None])
                middle = tl.load(page_mean + at, mask=there, other=NEGATIVE_INFINITY)
                largest, output = add_values(largest, output, middle, rows, 1, PAGE, PRECISION)
        if ROWS == LISTED:
            for start in range(split * BLOCK, size, splits * BLOCK):
                entry = start + tl.arange(0, BLOCK)
                page = tl.load(pages + pair * pages_row + entry, mask=entry < size, other=complete)
                rows = tl.load(
                    own + page.to(tl.int64)[:, None] * DV + e[None, :],
                    mask=(page < complete)[:, None] & (e < DV)[None, :],
                    other=0.0,
                )
                place = start * PAGE + tl.arange(0, BLOCK * PAGE)
                page_of = tl.load(pages + pair * pages_row + place // PAGE, mask=place < size * PAGE, other=complete)
                there = is_head[:, None] & (page_of < complete)[None, :]
                score = tl.load(scores + head[:, None] * row + place[None, :], mask=there, other=NEGATIVE_INFINITY)
                mine = is_kept(score, place[None, :], threshold[:, None], last[:, None])
                largest, output = add_values(
                    largest, output, tl.where(mine, NEGATIVE_INFINITY, score), rows, PAGE, 1, PRECISION
                )
        line = head * splits + split
        tl.store(part_max + line, largest, mask=is_head)
        tl.store(part + line[:, None] * DV + e[None, :], output, mask=is_head[:, None] & (e < DV)[None, :])

"""Attention over lists, split into parts, and the parts put together with what stands for the rest."""

import triton
import triton.language as tl

from .common import LISTED, NEGATIVE_INFINITY, PAGE, is_kept, logit_of, product, shares_of, visible_of
from .lists import add_mass
from .tuning import tuned

EVERY = tl.constexpr(0)
SEGMENTS = tl.constexpr(1)


@tuned((32, 64, 128), ("G", "D", "DV", "LIST", "KNOWN", "REST", "EVEN"))
@triton.jit(do_not_specialize=["parts", "entries_row"])
def attend_part(
    q, k, v, scores, first, length, entries, words, count, least, last_tie,
    part, part_even, part_max, part_sum, part_kept, rest_max, rest_sum,
    scaling, softcap, q_b, q_h, k_b, k_h, k_s, v_b, v_h, v_s, entries_row, row, parts,
    KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    GP: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr, SEGMENT: tl.constexpr, LIST: tl.constexpr,
    KNOWN: tl.constexpr, REST: tl.constexpr, EVEN: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """One part of a list: sums of exp(logit) value, of exp(logit) and of kept tokens, per head of a KV group.

    LIST says what is listed: EVERY visible token (no list), tokens in SEGMENTS of SEGMENT, one part each, or LISTED
    pages, whose tokens a head keeps by its threshold on `scores`. If KNOWN, the logits are `scores`; else keys are
    read. If REST, tokens of a head's own pages that it does not keep are summed up by their scores. If EVEN, values of
    the kept tokens are also summed up without weights.
    """
    pair, split = tl.program_id(0), tl.program_id(1)
    b, h = pair // KV, pair % KV
    visible = visible_of(first, length, b)
    if LIST == SEGMENTS:
        entry = (pair * parts + split) * SEGMENT
        start = 0
        stop = tl.load(count + pair * parts + split)
    else:
        entry = pair * entries_row
        size = visible
        if LIST == LISTED:
            size = tl.load(count + pair) * PAGE
        share = tl.cdiv(tl.cdiv(size, parts), PAGE) * PAGE
        start = split * share
        stop = tl.minimum(start + share, size)
    g = tl.arange(0, GP)
    d = tl.arange(0, DP)
    e = tl.arange(0, DVP)
    head = (b * KV * G + h * G + g).to(tl.int64)
    is_head = g < G
    if not KNOWN:
        query = tl.load(
            q + b.to(tl.int64) * q_b + (h * G + g)[:, None] * q_h + d[None, :],
            mask=is_head[:, None] & (d < D)[None, :],
            other=0.0,
        )
    if LIST == LISTED:
        threshold = tl.load(least + head, mask=is_head, other=0)
        last = tl.load(last_tie + head, mask=is_head, other=0)
    before = tl.load(first + b)
    keys = k + b.to(tl.int64) * k_b + h.to(tl.int64) * k_h
    values = v + b.to(tl.int64) * v_b + h.to(tl.int64) * v_h
    largest = tl.full([GP], NEGATIVE_INFINITY, tl.float32)
    total = tl.zeros([GP], tl.float32)
    kept = tl.zeros([GP], tl.int32)
    output = tl.zeros([GP, DVP], tl.float32)
    if EVEN:
        plain = tl.zeros([GP, DVP], tl.float32)
    other_max = tl.full([GP], NEGATIVE_INFINITY, tl.float32)
    other_sum = tl.zeros([GP], tl.float32)
    for offset in range(start, stop, BLOCK):
        place = offset + tl.arange(0, BLOCK)
        inside = place < stop
        token = place
        mine = is_head[:, None] & inside[None, :]
        if LIST == SEGMENTS:
            token = tl.load(entries + entry + place, mask=inside, other=0)
            word = tl.load(words + entry + place, mask=inside, other=0)
            mine = mine & (((word[None, :] >> g[:, None]) & 1) > 0)
        if LIST == LISTED:
            token = tl.load(entries + entry + place // PAGE, mask=inside, other=0) * PAGE + place % PAGE
            inside = inside & (token < visible)
            mine = mine & inside[None, :]
        if KNOWN or LIST == LISTED:
            at = token if LIST != LISTED else place
            score = tl.load(scores + head[:, None] * row + at[None, :], mask=mine, other=NEGATIVE_INFINITY)
        if LIST == LISTED:
            candidate = mine
            mine = mine & is_kept(score, place[None, :], threshold[:, None], last[:, None])
            if REST:
                other_max, other_sum = add_mass(other_max, other_sum, score, candidate & ~mine)
        read = tl.max(mine.to(tl.int32), axis=0) > 0
        at = (before + token).to(tl.int64)
        if KNOWN:
            logits = score
        else:
            key = tl.load(keys + at[None, :] * k_s + d[:, None], mask=read[None, :] & (d < D)[:, None], other=0.0)
            logits = logit_of(product(query, key, PRECISION), scaling, softcap, CAPPED)
        value = tl.load(values + at[:, None] * v_s + e[None, :], mask=read[:, None] & (e < DV)[None, :], other=0.0)
        logits = tl.where(mine, logits, NEGATIVE_INFINITY)
        both = tl.maximum(largest, tl.max(logits, axis=1))
        safe = tl.where(both == NEGATIVE_INFINITY, 0.0, both)
        shrink = tl.exp(largest - safe)
        weight = tl.exp(logits - safe[:, None])
        total = total * shrink + tl.sum(weight, axis=1)
        kept += tl.sum(mine.to(tl.int32), axis=1)
        output = output * shrink[:, None] + product(weight, value, PRECISION)
        if EVEN:
            plain += product(tl.where(mine, 1.0, 0.0), value, PRECISION)
        largest = both
    at = head * parts + split
    tl.store(part_max + at, largest, mask=is_head)
    tl.store(part_sum + at, total, mask=is_head)
    tl.store(part_kept + at, kept, mask=is_head)
    tl.store(part + at[:, None] * DV + e[None, :], output, mask=is_head[:, None] & (e < DV)[None, :])
    if EVEN:
        tl.store(part_even + at[:, None] * DV + e[None, :], plain, mask=is_head[:, None] & (e < DV)[None, :])
    if REST:
        tl.store(rest_max + at, other_max, mask=is_head)
        tl.store(rest_sum + at, other_sum, mask=is_head)


@triton.jit
def mass_of(maxima, sums, base, size, largest, BLOCK: tl.constexpr):
    """Sum of exp(logit) over partial sums, relative to exp(largest)."""
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        top = tl.load(maxima + base + i, mask=i < size, other=NEGATIVE_INFINITY)
        total += tl.load(sums + base + i, mask=i < size, other=0.0) * tl.exp(top - largest)
    return tl.sum(total, axis=0)


@triton.jit
def largest_of(maxima, base, size, largest, BLOCK: tl.constexpr):
    """The largest of `largest` and some partial maxima."""
    found = tl.full([BLOCK], NEGATIVE_INFINITY, tl.float32)
    for start in range(0, size, BLOCK):
        i = start + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(maxima + base + i, mask=i < size, other=NEGATIVE_INFINITY))
    return tl.maximum(tl.max(found, axis=0), largest)


@triton.jit(do_not_specialize=["parts", "far_parts", "page_parts"])
def combine_parts(
    part, part_even, part_max, part_sum, part_kept, rest_max, rest_sum, far_max, far_sum, page_part, page_max,
    tails, sink, value_sum, first, length, out, kept, parts, far_parts, page_parts,
    HEADS: tl.constexpr, G: tl.constexpr, DV: tl.constexpr, DVP: tl.constexpr,
    REST: tl.constexpr, FAR: tl.constexpr, SUNK: tl.constexpr, MEAN: tl.constexpr, EVEN: tl.constexpr,
    PAGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's output `[B, Hq, DV]` and kept tokens `[B, Hq]` from the parts of its list.

    Mass that is not kept comes from `rest` (one per part), from `far` (`far_parts`) and goes to `sink`, as far as REST,
    FAR and SUNK say; a renormalised head ignores the rest. Tails give it to the kept tokens in proportion to their
    weights, to the mean of the visible values, if MEAN, to the kept tokens in equal parts, if EVEN, and to the pages
    that it is missing from, if PAGED: `page_parts` sums from `spread_pages`.
    """
    head = tl.program_id(0)
    b = head // HEADS
    mean, even, weighted, paged, renormalize = shares_of(tails, head % HEADS)
    base = head.to(tl.int64) * parts
    far = head.to(tl.int64) * far_parts
    largest = largest_of(part_max, base, parts, NEGATIVE_INFINITY, BLOCK)
    if SUNK:
        sunk = tl.load(sink + head % HEADS).to(tl.float32)
        largest = tl.maximum(largest, sunk)
    # What is kept may be so small a part of all that its sums hold only against a maximum of their own.
    own = tl.where(largest == NEGATIVE_INFINITY, 0.0, largest)
    if REST:
        largest = largest_of(rest_max, base, parts, largest, BLOCK)
    if FAR:
        largest = largest_of(far_max, far, far_parts, largest, BLOCK)
    largest = tl.where(renormalize, own, largest)
    largest = tl.where(largest == NEGATIVE_INFINITY, 0.0, largest)
    e = tl.arange(0, DVP)
    output = tl.zeros([DVP], tl.float32)
    if EVEN:
        plain = tl.zeros([DVP], tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    counted = tl.zeros([BLOCK], tl.int32)
    for start in range(0, parts, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < parts
        scale = tl.exp(tl.load(part_max + base + i, mask=inside, other=NEGATIVE_INFINITY) - own)
        total += scale * tl.load(part_sum + base + i, mask=inside, other=0.0)
        counted += tl.load(part_kept + base + i, mask=inside, other=0)
        tile = tl.load(
            part + (base + i)[:, None] * DV + e[None, :], mask=inside[:, None] & (e < DV)[None, :], other=0.0
        )
        output += tl.sum(scale[:, None] * tile, axis=0)
        if EVEN:
            given = inside[:, None] & (e < tl.where(even != 0.0, DV, 0))[None, :]
            plain += tl.sum(tl.load(part_even + (base + i)[:, None] * DV + e[None, :], mask=given, other=0.0), axis=0)
    held = tl.sum(total, axis=0)
    if SUNK:
        held += tl.exp(sunk - own)
    missing = 0.0
    if REST:
        missing += mass_of(rest_max, rest_sum, base, parts, largest, BLOCK)
    if FAR:
        missing += mass_of(far_max, far_sum, far, far_parts, largest, BLOCK)
    missing = tl.where(renormalize, 0.0, missing)
    certain = tl.where(held == 0.0, 0.0, held * tl.exp(own - largest))
    mass = certain + missing
    mass = tl.where(mass == 0.0, 1.0, mass)
    missing = missing / mass
    output = output / tl.where(held == 0.0, 1.0, held) * (certain / mass + weighted * missing)
    count = tl.sum(counted, axis=0)
    if EVEN:
        output += even * missing * plain / tl.maximum(count, 1)
    if PAGED:
        at = head.to(tl.int64) * page_parts
        spread = tl.zeros([DVP], tl.float32)
        for start in range(0, page_parts, BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < tl.where(paged != 0.0, page_parts, 0)
            scale = tl.exp(tl.load(page_max + at + i, mask=inside, other=NEGATIVE_INFINITY) - largest)
            tile = tl.load(
                page_part + (at + i)[:, None] * DV + e[None, :], mask=inside[:, None] & (e < DV)[None, :], other=0.0
            )
            spread += tl.sum(scale[:, None] * tile, axis=0)
        output += paged / mass * spread
    if MEAN:
        seen = e < tl.where(mean != 0.0, DV, 0)
        total_value = tl.load(value_sum + (head // G).to(tl.int64) * DV + e, mask=seen, other=0.0).to(tl.float32)
        output += mean * missing * total_value / tl.maximum(visible_of(first, length, b), 1)
    tl.store(out + head.to(tl.int64) * DV + e, output.to(out.dtype.element_ty), mask=e < DV)
    tl.store(kept + head, count)

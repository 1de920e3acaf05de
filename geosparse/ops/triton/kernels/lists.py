"""Unions over the heads of a KV group: which pages or tokens are read, and a word that says for which of the heads."""

import triton
import triton.language as tl

from .common import NEGATIVE_INFINITY, PAGE, is_kept, visible_of


@triton.jit
def add_mass(largest, total, logits, counted):
    """Largest logit and sum of exp(logit - largest) `[GP]`, with the logits `[GP, T]` that are counted added."""
    logits = tl.where(counted, logits, NEGATIVE_INFINITY)
    both = tl.maximum(largest, tl.max(logits, axis=1))
    safe = tl.where(both == NEGATIVE_INFINITY, 0.0, both)
    return both, total * tl.exp(largest - safe) + tl.sum(tl.exp(logits - safe[:, None]), axis=1)


@triton.jit
def is_ranked(token, n, visible, SINKS: tl.constexpr):
    """Whether tokens `[T]` are among the first min(SINKS, n / 2) or the last others of heads that keep `n` `[GP]`."""
    sinks = tl.minimum(n // 2, SINKS)
    return (token[None, :] < sinks[:, None]) | (token[None, :] >= (visible - n + sinks)[:, None])


@triton.jit
def list_pages(
    bound, mean, first, length, least, last_tie, served, pages, words, count, rest_max, rest_sum,
    row, pages_row,
    KV: tl.constexpr, G: tl.constexpr, GR: tl.constexpr, BLOCK: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Pages that a head of the KV head's group chose, ascending, then the page that is not complete, for all heads.

    If REST, also the mass that `mean` says of each head's other pages, as a largest logit and a sum `[B, Hq]`.
    """
    pair = tl.program_id(0)
    b, h = pair // KV, pair % KV
    visible = visible_of(first, length, b)
    complete = visible // PAGE
    g = tl.arange(0, GR)
    head = b * KV * G + h * G + g
    takes = (g < G) & (tl.load(served + h * G + g, mask=g < G, other=0) > 0)
    threshold = tl.load(least + head, mask=g < G, other=0)
    last = tl.load(last_tie + head, mask=g < G, other=0)
    largest = tl.full([GR], NEGATIVE_INFINITY, tl.float32)
    total = tl.zeros([GR], tl.float32)
    listed = 0
    for start in range(0, complete, BLOCK):
        page = start + tl.arange(0, BLOCK)
        inside = takes[:, None] & (page < complete)[None, :]
        at = head.to(tl.int64)[:, None] * row + page[None, :]
        score = tl.load(bound + at, mask=inside, other=NEGATIVE_INFINITY)
        mine = inside & is_kept(score, page[None, :], threshold[:, None], last[:, None])
        word = tl.sum(mine.to(tl.int32) << g[:, None], axis=0)
        any_head = word != 0
        slot = pair * pages_row + listed + tl.cumsum(any_head.to(tl.int32), axis=0) - 1
        tl.store(pages + slot, page, mask=any_head)
        tl.store(words + slot, word, mask=any_head)
        listed += tl.sum(any_head.to(tl.int32), axis=0)
        if REST:
            logits = tl.load(mean + at, mask=inside & ~mine, other=NEGATIVE_INFINITY)
            largest, total = add_mass(largest, total, logits, inside & ~mine)
    if visible % PAGE > 0:
        tl.store(pages + pair * pages_row + listed, complete)
        tl.store(words + pair * pages_row + listed, tl.sum(takes.to(tl.int32) << g, axis=0))
        listed += 1
    tl.store(count + pair, listed)
    if REST:
        tl.store(rest_max + head, largest, mask=g < G)
        tl.store(rest_sum + head, total * PAGE, mask=g < G)


@triton.jit(do_not_specialize=["segments", "budgets_b"])
def list_tokens(
    scores, first, length, least, last_tie, budgets, served, tokens, words, count, rest_max, rest_sum,
    row, budgets_b, segments,
    KV: tl.constexpr, G: tl.constexpr, GR: tl.constexpr, SEGMENT: tl.constexpr, SINKS: tl.constexpr,
    RANKED: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    """Tokens that a head of the group keeps, ascending, in segments of SEGMENT tokens with a list and a count each.

    If RANKED, a head keeps its first min(SINKS, N / 2) tokens and the last others, else those above its threshold.
    If REST, also the mass of the tokens that it does not keep, `[B, Hq, segments]`.
    """
    pair, segment = tl.program_id(0), tl.program_id(1)
    b, h = pair // KV, pair % KV
    visible = visible_of(first, length, b)
    g = tl.arange(0, GR)
    head = b * KV * G + h * G + g
    takes = (g < G) & (tl.load(served + h * G + g, mask=g < G, other=0) > 0)
    start = segment * SEGMENT
    listed = 0
    largest = tl.full([GR], NEGATIVE_INFINITY, tl.float32)
    total = tl.zeros([GR], tl.float32)
    if start < visible:
        token = start + tl.arange(0, SEGMENT)
        inside = takes[:, None] & (token < visible)[None, :]
        at = head.to(tl.int64)[:, None] * row + token[None, :]
        if RANKED:
            n = tl.load(budgets + b * budgets_b + h * G + g, mask=g < G, other=0)
            mine = inside & is_ranked(token, n, visible, SINKS)
        else:
            threshold = tl.load(least + head, mask=g < G, other=0)
            last = tl.load(last_tie + head, mask=g < G, other=0)
            score = tl.load(scores + at, mask=inside, other=NEGATIVE_INFINITY)
            mine = inside & is_kept(score, token[None, :], threshold[:, None], last[:, None])
        word = tl.sum(mine.to(tl.int32) << g[:, None], axis=0)
        any_head = word != 0
        slot = (pair * segments + segment) * SEGMENT + tl.cumsum(any_head.to(tl.int32), axis=0) - 1
        tl.store(tokens + slot, token, mask=any_head)
        tl.store(words + slot, word, mask=any_head)
        listed += tl.sum(any_head.to(tl.int32), axis=0)
        if REST:
            logits = tl.load(scores + at, mask=inside & ~mine, other=NEGATIVE_INFINITY)
            largest, total = add_mass(largest, total, logits, inside & ~mine)
    tl.store(count + pair * segments + segment, listed)
    if REST:
        tl.store(rest_max + head * segments + segment, largest, mask=g < G)
        tl.store(rest_sum + head * segments + segment, total, mask=g < G)

"""The N-th highest score of a row, exactly, and which of the scores equal to it are kept."""

import triton
import triton.language as tl

from .common import PAGE, PAGES, order_of, row_size

DIGITS = tl.constexpr(256)
SIGN = tl.constexpr(0x80000000)


@triton.jit(do_not_specialize=["budgets_b"])
def find_threshold(
    scores, first, length, count, budgets, least, last_tie,
    row, budgets_b,
    KV: tl.constexpr, G: tl.constexpr, FACTOR: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Per row the order of its N-th highest score, and the place up to which scores equal to it are kept.

    Radix selection: four passes over the row, eight bits each, count digits of the scores that agree so far with the
    wanted one. N is the budget, or the pages that hold FACTOR times the budget. A row that has fewer scores, or none,
    keeps them all.
    """
    head = tl.program_id(0)
    b = head // (KV * G)
    size = row_size(first, length, count, b, head // G, ROWS)
    wanted = tl.load(budgets + b * budgets_b + head % (KV * G))
    if ROWS == PAGES:
        wanted = (wanted * FACTOR + PAGE - 1) // PAGE
    wanted = tl.minimum(wanted, size).to(tl.int32)
    base = scores + head.to(tl.int64) * row
    digits = tl.arange(0, DIGITS)
    found = wanted.to(tl.uint32)
    equal = wanted
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        counts = tl.zeros([DIGITS], tl.int32)
        for start in range(0, size, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < size
            key = order_of(tl.load(base + place, mask=inside, other=0.0)).to(tl.uint32, bitcast=True) ^ SIGN
            if step > 0:
                inside = inside & (((key ^ found) >> (shift + 8)) == 0)
            counts += tl.histogram(((key >> shift) & 255).to(tl.int32), DIGITS, mask=inside)
        from_top = tl.sum(counts, axis=0) - tl.cumsum(counts, axis=0) + counts
        digit = tl.maximum(tl.sum((from_top >= wanted).to(tl.int32), axis=0) - 1, 0)
        equal = tl.sum(tl.where(digits == digit, counts, 0), axis=0)
        wanted -= tl.sum(tl.where(digits == digit, from_top - counts, 0), axis=0)
        if step == 0:
            found = digit.to(tl.uint32) << shift
        else:
            found = found | (digit.to(tl.uint32) << shift)
    threshold = (found ^ SIGN).to(tl.int32, bitcast=True)
    last = size
    if equal > wanted:
        before = 0
        for start in range(0, size, BLOCK):
            place = start + tl.arange(0, BLOCK)
            inside = place < size
            tie = inside & (order_of(tl.load(base + place, mask=inside, other=0.0)) == threshold)
            rank = before + tl.cumsum(tie.to(tl.int32), axis=0)
            last = tl.minimum(last, tl.min(tl.where(tie & (rank == wanted), place, size), axis=0))
            before += tl.sum(tie.to(tl.int32), axis=0)
    tl.store(least + head, threshold)
    tl.store(last_tie + head, last)

"""Exact top-N prefill: the N-th highest score of every query of a block, then attention over what lies above it.

Scores are never stored; each pass over the keys makes them anew. A few passes count the scores above four thresholds
each, until no more than ROOM scores lie between two of them in any row; one more pass writes those down, and the N-th
highest is found among them. The first thresholds come from a normal law fitted to a sample of the scores, the next ones
from where the N-th would lie if scores were spread evenly in between, later ones divide the floats themselves, so that
the passes end for any scores. Loops are bounded `for`s: triton 3.7 fails to compile such `while`s for an H100.

With coded keys, scores are those of the codes, and exact in what is no complete page for a query; the kept ones are
weighed by their exact logits.

Tiles hold whole pages and their values are read anyway, so that mass for pages goes to those values in equal parts: no
mean values of pages are needed, and each query has the pages that are complete for it.
"""

import triton
import triton.language as tl

from .blocks import queries_of
from .common import NEGATIVE_INFINITY, PAGE, logit_of, order_of, product, shares_of
from .tuning import tuned

LEAST = tl.constexpr(-3.4028234663852886e38)
TINY = tl.constexpr(1.1754943508222875e-38)
SAMPLED = tl.constexpr(8)  # every 8th tile of keys is in the first sample
GUESSES = tl.constexpr(6)  # passes that guess
PASSES = tl.constexpr(22)  # at most; each of the last 16 leaves a fifth of all floats, 14 leave one of 2^32


@triton.jit
def float_of(order):
    """The fp32 number of an order (`common.order_of`)."""
    return tl.where(order < 0, order ^ 0x7FFFFFFF, order).to(tl.float32, bitcast=True)


@triton.jit
def upper_quantile(share):
    """The point of the standard normal law that `share` lies above, within 0.003 (Abramowitz and Stegun 26.2.22)."""
    near = tl.maximum(tl.minimum(share, 1.0 - share), 1e-9)
    t = tl.sqrt(-2.0 * tl.log(near))
    point = t - (2.30753 + 0.27061 * t) / (1.0 + 0.99229 * t + 0.04481 * t * t)
    return tl.where(share <= 0.5, point, -point)


@triton.jit
def tile_logits(
    query, keys, token, stop, limit, k_s, scaling, softcap,
    D: tl.constexpr, DP: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Logits of a block of queries and the keys `token`, -inf where a query does not see a key."""
    d = tl.arange(0, DP)
    there = token < stop
    key = tl.load(
        keys + token.to(tl.int64)[None, :] * k_s + d[:, None], mask=there[None, :] & (d < D)[:, None], other=0.0
    )
    logits = logit_of(product(query, key, PRECISION), scaling, softcap, CAPPED)
    return tl.where(there[None, :] & (token[None, :] <= limit[:, None]), logits, NEGATIVE_INFINITY)


@triton.jit
def tile_scores(
    query, keys, codes, token, stop, limit, k_s, c_s, scaling, softcap,
    D: tl.constexpr, DP: tl.constexpr, CODED: tl.constexpr, RECENT: tl.constexpr, CAPPED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """What queries select by: logits, or where CODED those of codes. RECENT says whether a token of the tile may be in
    no complete page for a query, which then sees its key."""
    if CODED:
        scores = tile_logits(query, codes, token, stop, limit, c_s, scaling, softcap, D, DP, CAPPED, PRECISION)
        if RECENT:
            exact = tile_logits(query, keys, token, stop, limit, k_s, scaling, softcap, D, DP, CAPPED, PRECISION)
            scores = by_pages(scores, exact, token, limit)
    else:
        scores = tile_logits(query, keys, token, stop, limit, k_s, scaling, softcap, D, DP, CAPPED, PRECISION)
    return scores


@triton.jit
def by_pages(coded, exact, token, limit):
    """Scores by codes in the pages that are complete for a query, exact ones behind."""
    return tl.where(token[None, :] < ((limit + 1) // PAGE * PAGE)[:, None], coded, exact)


@triton.jit
def page_means(weight, ROWS: tl.constexpr, TILE: tl.constexpr):
    """Weights `[ROWS, TILE]`, each replaced by the mean over the page that it is in; tiles hold whole pages."""
    means = tl.sum(tl.reshape(weight, (ROWS, TILE // PAGE, PAGE)), axis=2) / PAGE
    return tl.reshape(tl.broadcast_to(means[:, :, None], (ROWS, TILE // PAGE, PAGE)), (ROWS, TILE))


@triton.jit
def narrowed(low, above_low, high, above_high, threshold, count, wanted):
    """The bracket of the N-th highest score after `count` scores were found to reach `threshold`."""
    reaches = (count >= wanted) & (threshold > low)
    misses = (count < wanted) & (threshold < high)
    low, above_low = tl.where(reaches, threshold, low), tl.where(reaches, count, above_low)
    high, above_high = tl.where(misses, threshold, high), tl.where(misses, count, above_high)
    return low, above_low, high, above_high


@triton.jit
def fifths(low, high, step: tl.constexpr):
    """A point between two floats: `step` fifths of the way in their order."""
    start, end = order_of(low).to(tl.int64), order_of(high).to(tl.int64)
    return float_of((start + (end - start) * step // 5).to(tl.int32))


@triton.jit
def guessed(low, above_low, high, above_high, wanted, spread, step: tl.constexpr, attempt):
    """A point between two floats: `step` deviations from where the N-th highest lies if the rest is spread evenly; or,
    where the bracket is open, ever farther beyond its one end."""
    among = tl.maximum(above_low - above_high, 1).to(tl.float32)
    share = (above_low - wanted).to(tl.float32) / among
    share = tl.minimum(tl.maximum(share + step / tl.sqrt(among), 0.0), 1.0)
    open_below, open_above = low == LEAST, high == float("inf")
    inside = low + tl.where(open_below | open_above, 0.0, high - low) * share
    far = spread * (step + 4) * tl.exp2(tl.zeros_like(spread) + attempt - 3)
    return tl.where(open_above, tl.where(open_below, 0.0, low + far), tl.where(open_below, high - far, inside))


@tuned((1,), ("D", "DV", "EVEN", "PAGED", "CODED"), warps=(4, 8))
@triton.jit
def attend_exactly(
    q, k, v, codes, first, budgets, tails, prefix, sink, scratch, out, kept,
    start_block, queries, keys, scaling, softcap, q_b, q_h, q_s, k_b, k_h, k_s, v_b, v_h, v_s, c_b, c_h, c_s,
    query_blocks, prefixes, n_b, n_h, n_s,
    KV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, DP: tl.constexpr, DVP: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, ROOM: tl.constexpr, EVEN: tl.constexpr, PAGED: tl.constexpr,
    CODED: tl.constexpr, CAPPED: tl.constexpr, SUNK: tl.constexpr, PRECISION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One head's exact top-N attention of a block of ROWS queries; `kept` gets how many tokens they kept in all.

    EVEN says whether any head's tail gives mass to its kept tokens in equal parts, PAGED whether to the pages that it
    is missing from; where CODED, `codes` are the keys as the index has them, else anything.
    """
    PARTS: tl.constexpr = 2 if CODED else 1  # of a pass: with codes alone, and with keys
    block, head = start_block + tl.program_id(0), tl.program_id(1)
    b, h = head // (KV * G), head % (KV * G)
    hidden, offset = queries_of(first, b, queries, keys)
    row = block * ROWS + tl.arange(0, ROWS)
    asked = row < queries - hidden
    if block * ROWS < queries - hidden:
        d = tl.arange(0, DP)
        e = tl.arange(0, DVP)
        place = tl.arange(0, ROOM)
        at = b.to(tl.int64) * q_b + h.to(tl.int64) * q_h + (hidden + row)[:, None].to(tl.int64) * q_s
        query = tl.load(q + at + d[None, :], mask=asked[:, None] & (d < D)[None, :], other=0.0)
        before = tl.load(first + b).to(tl.int64)
        own_keys = k + b.to(tl.int64) * k_b + (h // G).to(tl.int64) * k_h + before * k_s
        own_values = v + b.to(tl.int64) * v_b + (h // G).to(tl.int64) * v_h + before * v_s
        own_codes = codes + b.to(tl.int64) * c_b + (h // G).to(tl.int64) * c_h + before * c_s
        limit = offset + row
        visible = limit + 1
        # Tiles before `settled` hold no token that a query of this block sees in no complete page.
        settled = (offset + block * ROWS + 1) // TILE * TILE
        stop = tl.minimum(offset + (block + 1) * ROWS, offset + queries - hidden)
        number = tl.load(budgets + b * n_b + h * n_h + (hidden + row) * n_s, mask=asked, other=1).to(tl.int32)
        wanted = tl.minimum(number, visible)

        # A sample of the scores: mean and deviation.
        count = tl.zeros([ROWS], tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        squares = tl.zeros([ROWS], tl.float32)
        for start in range(0, stop, SAMPLED * TILE):
            scores = tile_scores(
                query, own_keys, own_codes, start + tl.arange(0, TILE), stop, limit, k_s, c_s, scaling, softcap, D, DP,
                CODED, True, CAPPED, PRECISION,
            )  # fmt: skip
            seen = scores > NEGATIVE_INFINITY
            count += tl.sum(seen.to(tl.float32), axis=1)
            total += tl.sum(tl.where(seen, scores, 0.0), axis=1)
            squares += tl.sum(tl.where(seen, scores * scores, 0.0), axis=1)
        mean = total / tl.maximum(count, 1.0)
        spread = tl.sqrt(tl.maximum(squares / tl.maximum(count, 1.0) - mean * mean, 0.0)) + 1e-6
        middle = mean + spread * upper_quantile(wanted.to(tl.float32) / visible.to(tl.float32))

        # At least `wanted` scores reach `low`, fewer reach `high`; rows that keep all they see have nothing to find.
        low = tl.full([ROWS], LEAST, tl.float32)
        high = tl.full([ROWS], float("inf"), tl.float32)
        above_low = visible
        above_high = tl.zeros([ROWS], tl.int32)
        apart = wanted < visible
        for attempt in range(0, PASSES):
            if tl.max((asked & apart & (above_low - above_high > ROOM)).to(tl.int32), axis=0) > 0:
                a, z = middle - 0.3 * spread, middle - 0.1 * spread
                c, g = middle + 0.1 * spread, middle + 0.3 * spread
                if attempt > 0:
                    a = guessed(low, above_low, high, above_high, wanted, spread, -3, attempt)
                    z = guessed(low, above_low, high, above_high, wanted, spread, -1, attempt)
                    c = guessed(low, above_low, high, above_high, wanted, spread, 1, attempt)
                    g = guessed(low, above_low, high, above_high, wanted, spread, 3, attempt)
                if attempt >= GUESSES:
                    a, z = fifths(low, high, 1), fifths(low, high, 2)
                    c, g = fifths(low, high, 3), fifths(low, high, 4)
                reach_a = tl.zeros([ROWS], tl.int32)
                reach_z = tl.zeros([ROWS], tl.int32)
                reach_c = tl.zeros([ROWS], tl.int32)
                reach_g = tl.zeros([ROWS], tl.int32)
                for part in tl.static_range(0, PARTS):
                    for start in range(0 if part == 0 else settled, settled if part < PARTS - 1 else stop, TILE):
                        scores = tile_scores(
                            query, own_keys, own_codes, start + tl.arange(0, TILE), stop, limit, k_s, c_s, scaling,
                            softcap, D, DP, CODED, part == PARTS - 1, CAPPED, PRECISION,
                        )  # fmt: skip
                        reach_a += tl.sum((scores >= a[:, None]).to(tl.int32), axis=1)
                        reach_z += tl.sum((scores >= z[:, None]).to(tl.int32), axis=1)
                        reach_c += tl.sum((scores >= c[:, None]).to(tl.int32), axis=1)
                        reach_g += tl.sum((scores >= g[:, None]).to(tl.int32), axis=1)
                low, above_low, high, above_high = narrowed(low, above_low, high, above_high, a, reach_a, wanted)
                low, above_low, high, above_high = narrowed(low, above_low, high, above_high, z, reach_z, wanted)
                low, above_low, high, above_high = narrowed(low, above_low, high, above_high, c, reach_c, wanted)
                low, above_low, high, above_high = narrowed(low, above_low, high, above_high, g, reach_g, wanted)
                apart = (wanted < visible) & (order_of(high).to(tl.int64) - order_of(low).to(tl.int64) > 1)

        # What lies in between is written down, in rows where that is little, and the N-th highest found among it.
        listed = asked & (wanted < visible) & (above_low - above_high <= ROOM)
        own = scratch + (tl.program_id(0) * tl.num_programs(1) + head).to(tl.int64) * ROWS * ROOM
        lines = own + tl.arange(0, ROWS)[:, None] * ROOM
        filled = tl.zeros([ROWS], tl.int32)
        for part in tl.static_range(0, PARTS):
            for start in range(0 if part == 0 else settled, settled if part < PARTS - 1 else stop, TILE):
                scores = tile_scores(
                    query, own_keys, own_codes, start + tl.arange(0, TILE), stop, limit, k_s, c_s, scaling, softcap,
                    D, DP, CODED, part == PARTS - 1, CAPPED, PRECISION,
                )  # fmt: skip
                between = listed[:, None] & (scores >= low[:, None]) & (scores < high[:, None])
                slot = filled[:, None] + tl.cumsum(between.to(tl.int32), axis=1) - 1
                tl.store(lines + slot, scores, mask=between & (slot < ROOM))
                filled += tl.sum(between.to(tl.int32), axis=1)
        tl.debug_barrier()
        some = tl.load(lines + place[None, :], mask=place[None, :] < filled[:, None], other=NEGATIVE_INFINITY)
        orders = order_of(some)
        least, beyond = order_of(low).to(tl.int64), order_of(high).to(tl.int64)
        rank = wanted - above_high
        for _ in range(0, 33):
            half = least + (beyond - least) // 2
            enough = tl.sum((orders >= half.to(tl.int32)[:, None]).to(tl.int32), axis=1) >= rank
            least, beyond = tl.where(listed & enough, half, least), tl.where(listed & ~enough, half, beyond)
        threshold = tl.where(listed, least.to(tl.int32), order_of(low))
        higher = above_high + tl.where(listed, tl.sum((orders > threshold[:, None]).to(tl.int32), axis=1), 0)
        equal = tl.sum((orders == threshold[:, None]).to(tl.int32), axis=1)
        equal = tl.where(listed, equal, above_low - above_high)
        spare = tl.where(wanted < visible, wanted - higher, visible)
        some_tie = tl.max((asked & (wanted < visible) & (equal > spare)).to(tl.int32), axis=0) > 0

        # Attention over all keys for the softmax, over the kept ones for the values.
        share, even, weighted, paged, renormalize = shares_of(tails, h)
        largest = tl.full([ROWS], NEGATIVE_INFINITY, tl.float32)
        whole = tl.zeros([ROWS], tl.float32)
        if SUNK:
            largest = tl.zeros([ROWS], tl.float32) + tl.load(sink + h).to(tl.float32)
            whole = tl.full([ROWS], 1.0, tl.float32)
        mass = whole
        output = tl.zeros([ROWS, DVP], tl.float32)
        values = tl.zeros([ROWS, DVP], tl.float32)
        if EVEN:
            plain = tl.zeros([ROWS, DVP], tl.float32)
        if PAGED:
            spread = tl.zeros([ROWS, DVP], tl.float32)
        ties = tl.zeros([ROWS], tl.int32)
        chosen = tl.zeros([ROWS], tl.int32)
        seen_by_all = (offset + block * ROWS) // TILE * TILE
        for start in range(0, stop, TILE):
            token = start + tl.arange(0, TILE)
            exact = tile_logits(query, own_keys, token, stop, limit, k_s, scaling, softcap, D, DP, CAPPED, PRECISION)
            scores = exact
            if CODED:
                coded = tile_logits(
                    query, own_codes, token, stop, limit, c_s, scaling, softcap, D, DP, CAPPED, PRECISION
                )  # fmt: skip
                scores = by_pages(coded, exact, token, limit)
            order = order_of(scores)
            tie = (order == threshold[:, None]) & (scores > NEGATIVE_INFINITY)
            keep = (order > threshold[:, None]) | tie
            if some_tie:
                so_far = ties[:, None] + tl.cumsum(tie.to(tl.int32), axis=1)
                keep = keep & ((order > threshold[:, None]) | (so_far <= spare[:, None]))
                ties += tl.sum(tie.to(tl.int32), axis=1)
            keep = keep & (scores > NEGATIVE_INFINITY)
            scores = tl.where(keep, exact, scores)
            value = tl.load(
                own_values + token.to(tl.int64)[:, None] * v_s + e[None, :],
                mask=(token < stop)[:, None] & (e < DV)[None, :],
                other=0.0,
            )
            both = tl.maximum(largest, tl.max(scores, axis=1))
            safe = tl.where(both == NEGATIVE_INFINITY, 0.0, both)
            shrink = tl.exp(largest - safe)
            every = tl.exp(scores - safe[:, None])
            weight = tl.where(keep, every, 0.0)
            whole = whole * shrink + tl.sum(every, axis=1)
            mass = mass * shrink + tl.sum(weight, axis=1)
            output = output * shrink[:, None] + product(weight, value, PRECISION)
            if EVEN and even != 0.0:
                plain += product(tl.where(keep, 1.0, 0.0), value, PRECISION)
            if PAGED and paged != 0.0:
                others = by_pages(page_means(every - weight, ROWS, TILE), every - weight, token, limit)
                spread = spread * shrink[:, None] + product(others, value, PRECISION)
            if (share != 0.0) & (start >= seen_by_all):
                ones = tl.where((token < stop)[None, :] & (token[None, :] <= limit[:, None]), 1.0, 0.0)
                values += product(ones, value, PRECISION)
            largest = both
            chosen += tl.sum(keep.to(tl.int32), axis=1)
        missing = tl.where(renormalize, 0.0, tl.maximum(1 - mass / whole, 0.0))
        result = (
            output * tl.where(renormalize, 1 / mass, 1 / whole + weighted * missing / tl.maximum(mass, TINY))[:, None]
        )
        if EVEN:
            result += (even * missing / tl.maximum(chosen, 1).to(tl.float32))[:, None] * plain
        if PAGED and paged != 0.0:
            result += (paged / whole)[:, None] * spread
        if share != 0.0:
            line = ((b * KV + h // G) * prefixes + seen_by_all // TILE).to(tl.int64) * DV
            values += tl.load(prefix + line + e, mask=e < DV, other=0.0)[None, :]
            result += (share * missing / visible.to(tl.float32))[:, None] * values
        spot = (head.to(tl.int64) * queries + hidden + row)[:, None] * DV + e[None, :]
        tl.store(out + spot, result.to(out.dtype.element_ty), mask=asked[:, None] & (e < DV)[None, :])
        tl.store(kept + head * query_blocks + block, tl.sum(tl.where(asked, chosen, 0), axis=0))

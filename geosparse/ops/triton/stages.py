"""The stages of a decode step, one kernel launch each: score, select, list, attend.

Grids depend on the capacity of the buffers, never on what is in them: lengths, budgets and lists are read on the
device, so that a captured step stays right while the context grows. Tokens count from `first`, the first visible one.
The stages are also operators of torch, `torch.ops.geosparse_triton.NAME`, for graphs that torch builds.
"""

from __future__ import annotations

import torch

from ..buffers import empty
from ..key_index import PAGE
from ..selectors.sink_recent import SINKS
from .launch import launch
from .library import mixed_precision, precision, shares

SEGMENT = 512
ALIGNED = 16  # places
LEAST_ROWS = 16  # of a product on tensor cores


def score_pages(
    query: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    capacity: int,
    scaling: float,
    softcap: float | None,
    mean: bool,
) -> torch.Tensor:
    """Logits of the complete pages of the index, `[1 or 2, B, Hq, P]`: the largest possible, and if `mean` the mean.

    Args:
        query: `[B, Hq, D]`.
        low, high: `[B, Hkv, P', W]`, of a KeyIndex.
        first, length: int32 `[B]`, the first visible key and the one behind the last.
        capacity: The most tokens there can be.
        scaling, softcap: Of the logits; the bounds go without the soft cap.
        mean: Whether the mean is wanted too: the log of the mean of exp(logit).
    """
    from .kernels.bounds import score_bounds

    (batch, heads, dim), kv_heads = query.shape, low.shape[1]
    scores = empty((1 + mean, batch, heads, page_room(capacity)), torch.float32, query.device)
    query = unit(query)
    programs = shares(query.device, batch * kv_heads, _ceil(scores.shape[-1], 16))
    launch(
        score_bounds, (batch * kv_heads, programs),
        query, low, high, first, length, scores[0], scores[-1],
        scaling, softcap or 1.0, query.stride(0), query.stride(1), low.stride(0), low.stride(1), scores.shape[-1],
        KV=kv_heads, G=heads // kv_heads, D=dim, WIDTH=low.shape[-1], GP=rows_of(heads // kv_heads), DP=width_of(dim),
        MEAN=mean, CAPPED=softcap is not None, PRECISION=mixed_precision(query.dtype),
    )  # fmt: skip
    return scores


def score_tokens(
    query: torch.Tensor,
    key: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    scaling: float,
    softcap: float | None,
    low: torch.Tensor | None = None,
    high: torch.Tensor | None = None,
    codes: torch.Tensor | None = None,
    pages: torch.Tensor | None = None,
    words: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits `[B, Hq, R]` of all visible tokens, or of those of the listed pages, where a head's are -inf elsewhere.

    Args:
        query: `[B, Hq, D]`.
        key: `[B, Hkv, S, D]`.
        first, length: int32 `[B]`.
        scaling, softcap: Of the logits.
        low, high, codes: Of a KeyIndex of 4 bits; with them tokens of complete pages are scored as it has them.
        pages, words, count: From `list_pages`.
    """
    from .kernels import tokens as kernels
    from .kernels.common import LISTED, TOKENS

    (batch, heads, dim), kv_heads = query.shape, key.shape[1]
    room = _padded(key.shape[2]) if pages is None else pages.shape[-1] * PAGE
    scores = empty((batch, heads, room), torch.float32, query.device)
    query, key = unit(query), unit(key)
    index = query[None] if low is None else low
    coded = query if codes is None else codes.view(torch.int32)
    programs = shares(query.device, batch * kv_heads, _ceil(scores.shape[-1], 64))
    launch(
        kernels.score_tokens, (batch * kv_heads, programs),
        query, key, index, index if high is None else high, coded, first, length,
        first if pages is None else pages, first if words is None else words, first if count is None else count, scores,
        scaling, softcap or 1.0, query.stride(0), query.stride(1), key.stride(0), key.stride(1), key.stride(2),
        index.stride(0), index.stride(1), coded.stride(0), coded.stride(1),
        0 if pages is None else pages.shape[-1], scores.shape[-1],
        KV=kv_heads, G=heads // kv_heads, D=dim, WIDTH=index.shape[-1], GP=rows_of(heads // kv_heads), DP=width_of(dim),
        ROWS=(TOKENS if pages is None else LISTED).value, CODED=codes is not None, CAPPED=softcap is not None,
        PRECISION=mixed_precision(query.dtype), EXACT=precision(key.dtype),
    )  # fmt: skip
    return scores


def select(
    scores: torch.Tensor,
    budgets: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    kv_heads: int,
    factor: int = 0,
    count: torch.Tensor | None = None,
) -> torch.Tensor:
    """What each head keeps of a row of scores, `[2, B, Hq]` int32: a threshold, and the last place of a tie with it.

    Args:
        scores: `[B, Hq, R]` of tokens or pages.
        budgets: int32 `[B or 1, Hq]`, tokens; they are spent exactly, ties go to the smaller place.
        first, length: int32 `[B]`.
        kv_heads: KV heads.
        factor: For rows of pages: as many are kept as hold `factor` times the budget; 0 for rows of tokens.
        count: From `list_pages`, for tokens of listed pages.
    """
    from .kernels.common import LISTED, PAGES, TOKENS
    from .kernels.threshold import find_threshold

    batch, heads, row = scores.shape
    chosen = empty((2, batch, heads), torch.int32, scores.device)
    rows = PAGES if factor else TOKENS if count is None else LISTED
    launch(
        find_threshold, (batch * heads,),
        scores, first, length, first if count is None else count, budgets, chosen[0], chosen[1],
        row, heads if budgets.shape[0] > 1 else 0,
        KV=kv_heads, G=heads // kv_heads, FACTOR=factor, ROWS=rows.value, BLOCK=4096, num_warps=8,
    )  # fmt: skip
    return chosen


Lists = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def list_pages(
    scores: torch.Tensor,
    chosen: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    served: torch.Tensor,
    kv_heads: int,
) -> Lists:
    """The pages that any head of a KV group reads: those chosen, and the one that is not complete.

    Args:
        scores: `[1 or 2, B, Hq, P]` from `score_pages`.
        chosen: `[2, B, Hq]` from `select`.
        first, length: int32 `[B]`.
        served: int32 `[Hq]`, 0 for heads that do not take part.
        kv_heads: KV heads.

    Returns:
        int32 pages `[B, Hkv, P]`, for which heads of the group (bit g), how many pages `[B, Hkv]`; and the mass of each
        head's other pages, if there are means: a largest logit and a sum, `[2, B, Hq, 1]`.
    """
    from .kernels import lists as kernels

    batch, heads, row = scores.shape[1:]
    group = heads // kv_heads
    device = scores.device
    pages, words = (empty((batch, kv_heads, row), torch.int32, device) for _ in range(2))
    count = empty((batch, kv_heads), torch.int32, device)
    rest = empty((2, batch, heads, 1), torch.float32, device)
    launch(
        kernels.list_pages, (batch * kv_heads,),
        scores[0], scores[-1], first, length, chosen[0], chosen[1], served, pages, words, count, rest[0], rest[1],
        row, pages.shape[-1],
        KV=kv_heads, G=group, GR=_power(group), BLOCK=max(256, 4096 // _power(group)), REST=len(scores) > 1,
        num_warps=8,
    )  # fmt: skip
    return pages, words, count, rest


def list_tokens(
    scores: torch.Tensor | None,
    chosen: torch.Tensor | None,
    first: torch.Tensor,
    length: torch.Tensor,
    budgets: torch.Tensor,
    served: torch.Tensor,
    kv_heads: int,
    capacity: int,
    rest: bool,
) -> Lists:
    """The tokens that any head of a KV group keeps, in segments.

    Args:
        scores: `[B, Hq, R]` of all visible tokens; None where neither selection nor `rest` needs them.
        chosen: `[2, B, Hq]` from `select`; None: the first and the most recent tokens of the budgets are kept.
        first, length: int32 `[B]`.
        budgets: int32 `[B or 1, Hq]`.
        served: int32 `[Hq]`, 0 for heads that do not take part.
        kv_heads: KV heads.
        capacity: The most tokens there can be.
        rest: Whether the mass of the other tokens is wanted.

    Returns:
        int32 tokens `[B, Hkv, segments, SEGMENT]`, for which heads of the group (bit g), how many in each segment
        `[B, Hkv, segments]`; and the mass of each head's other tokens `[2, B, Hq, segments]`.
    """
    from .kernels import lists as kernels

    heads, batch = served.shape[0], first.shape[0]
    group = heads // kv_heads
    segments = _ceil(capacity, SEGMENT)
    device = first.device
    tokens, words = (empty((batch, kv_heads, segments, SEGMENT), torch.int32, device) for _ in range(2))
    count = empty((batch, kv_heads, segments), torch.int32, device)
    mass = empty((2, batch, heads, segments), torch.float32, device)
    launch(
        kernels.list_tokens, (batch * kv_heads, segments),
        mass if scores is None else scores, first, length, *((first, first) if chosen is None else chosen.unbind()),
        budgets, served, tokens, words, count, mass[0], mass[1],
        0 if scores is None else scores.shape[-1], heads if budgets.shape[0] > 1 else 0, segments,
        KV=kv_heads, G=group, GR=_power(group), SEGMENT=SEGMENT, SINKS=SINKS, RANKED=chosen is None, REST=rest,
    )  # fmt: skip
    return tokens, words, count, mass


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    tails: torch.Tensor,
    scaling: float,
    softcap: float | None,
    sink: torch.Tensor | None = None,
    value_sum: torch.Tensor | None = None,
    entries: torch.Tensor | None = None,
    words: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
    far: torch.Tensor | None = None,
    scores: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
    known: bool = False,
    even: bool = False,
    spread: torch.Tensor | None = None,
    spread_max: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over a list, in two launches: parts of the list, then all of them and the tail.

    Args:
        query: `[B, Hq, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        first, length: int32 `[B]`.
        tails: fp32 `[Hq, 4]`, the shares of a TailShares per head.
        scaling, softcap: Of the logits.
        sink: `[Hq]` logits of a token that has no value.
        value_sum: `[B, Hkv, Dv]`, of the visible values; None where no tail needs their mean.
        entries, words, count: A list of tokens or pages; None: every visible token is kept, which is dense attention.
        far: `[2, B, Hq, n]`, the mass of what is not listed; None where no tail needs it.
        scores: `[B, Hq, R]` of the tokens listed, by which `chosen` keeps tokens of pages.
        chosen: `[2, B, Hq]`, for lists of pages.
        known: `scores` are the logits themselves, so that no keys are read.
        even: Whether a tail gives mass to the kept tokens in equal parts.
        spread, spread_max: From `spread_pages`; None where no tail gives mass to pages.

    Returns:
        `[B, Hq, Dv]` in the dtype of `query`, and the tokens each head kept, int32 `[B, Hq]`.
    """
    from .kernels.attend import EVERY, SEGMENTS, attend_part, combine_parts
    from .kernels.common import LISTED

    (batch, heads, dim), (_, kv_heads, keys, value_dim) = query.shape, value.shape
    group = heads // kv_heads
    device = query.device
    output, kept = empty((batch, heads, value_dim), query.dtype, device), empty((batch, heads), torch.int32, device)
    query, key, value = unit(query), unit(key), unit(value)
    paged = chosen is not None
    kind = EVERY if entries is None else LISTED if paged else SEGMENTS
    segmented = count is not None and not paged
    parts = (
        count.shape[-1] if segmented and count is not None else shares(key.device, batch * kv_heads, _ceil(keys, 64))
    )
    sums = empty((batch, heads, parts, value_dim), torch.float32, device)
    plain = empty(sums.shape, torch.float32, device) if even else sums
    maxima, totals, near_max, near_sum = empty((4, batch, heads, parts), torch.float32, device).unbind()
    counts = empty((batch, heads, parts), torch.int32, device)
    near = paged and far is not None
    scored = maxima if scores is None else scores
    launch(
        attend_part, (batch * kv_heads, parts),
        query, key, value, scored, first, length, first if entries is None else entries,
        first if words is None else words, first if count is None else count,
        *((first, first) if chosen is None else chosen.unbind()),
        sums, plain, maxima, totals, counts, near_max, near_sum,
        scaling, softcap or 1.0, query.stride(0), query.stride(1), key.stride(0), key.stride(1), key.stride(2),
        value.stride(0), value.stride(1), value.stride(2), 0 if entries is None else entries.shape[-1],
        0 if scores is None else scores.shape[-1], parts,
        KV=kv_heads, G=group, D=dim, DV=value_dim, GP=rows_of(group), DP=width_of(dim), DVP=width_of(value_dim),
        SEGMENT=SEGMENT, LIST=kind.value, KNOWN=known, REST=near, EVEN=even,
        CAPPED=softcap is not None, PRECISION=precision(value.dtype),
    )  # fmt: skip
    launch(
        combine_parts, (batch * heads,),
        sums, plain, maxima, totals, counts, near_max, near_sum, *((maxima, maxima) if far is None else far.unbind()),
        sums if spread is None else spread, maxima if spread_max is None else spread_max,
        tails, tails if sink is None else unit(sink), sums if value_sum is None else value_sum, first, length,
        output, kept, parts, 0 if far is None else far.shape[-1], 0 if spread is None else spread.shape[2],
        HEADS=heads, G=group, DV=value_dim, DVP=width_of(value_dim),
        REST=near, FAR=far is not None, SUNK=sink is not None, MEAN=value_sum is not None, EVEN=even,
        PAGED=spread is not None, BLOCK=16,
    )  # fmt: skip
    return output, kept


def page_room(capacity: int) -> int:
    """Places for the pages of `capacity` tokens, the one that is not complete included."""
    return _padded(capacity // PAGE + 1)


def unit(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with a step of 1 in its last dimension."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _padded(places: int) -> int:
    """Rows of such a length are aligned alike, however many places they hold: kernels are compiled once."""
    return _ceil(places, ALIGNED) * ALIGNED


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _power(n: int) -> int:
    return 1 << (n - 1).bit_length()


def width_of(dim: int) -> int:
    """The width in which kernels hold a row of `dim` channels."""
    return max(LEAST_ROWS, _power(dim))


def rows_of(group: int) -> int:
    """The height in which kernels hold the heads of a KV group."""
    return max(LEAST_ROWS, _power(group))

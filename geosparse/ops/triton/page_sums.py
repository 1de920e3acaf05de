"""The stage of a decode step that gives mass to the pages that it is missing from; only where a tail does so."""

from __future__ import annotations

import torch

from ..buffers import empty
from ..key_index import PAGE
from ..selectors.sink_recent import SINKS
from .launch import launch
from .library import mixed_precision, precision, shares
from .stages import rows_of, unit, width_of

LEAST_BLOCK = 16  # pages that a program takes at a time


def spread_pages(
    scores: torch.Tensor,
    value: torch.Tensor,
    means: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
    tails: torch.Tensor,
    budgets: torch.Tensor,
    chosen: torch.Tensor | None,
    bounds: torch.Tensor | None = None,
    chosen_pages: torch.Tensor | None = None,
    pages: torch.Tensor | None = None,
    count: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What tokens that are not kept weigh, times the mean value of their page, or their own behind the complete ones.

    Args:
        scores: `[B, Hq, R]` of all visible tokens, or of those of the listed pages, from `score_tokens`.
        value: `[B, Hkv, S, Dv]`.
        means: `[B, Hkv, P', Dv]` fp16, of the values of complete pages.
        first, length: int32 `[B]`.
        tails: fp32 `[Hq, 4]`; a KV group none of whose heads gives to pages gets nothing written.
        budgets: int32 `[B or 1, Hq]`, of heads that keep their first and last tokens.
        chosen: `[2, B, Hq]` from `select` on `scores`; None: the first and the last tokens of the budgets are kept.
        bounds, chosen_pages: From `score_pages` with means, and from `select` on them; None for scores of all tokens.
        pages, count: From `list_pages`, likewise.

    Returns:
        Parts of the sum `[B, Hq, n, Dv]`, each relative to exp of its number in `[B, Hq, n]`.
    """
    from .kernels import page_sums as kernels
    from .kernels.common import LISTED, TOKENS

    (batch, heads, row), (kv_heads, keys, value_dim) = scores.shape, value.shape[1:]
    group, device, value = heads // kv_heads, value.device, unit(value)
    programs = shares(device, batch * kv_heads, -(-max(1, keys // PAGE) // LEAST_BLOCK))
    part = empty((batch, heads, programs, value_dim), torch.float32, device)
    part_max = empty((batch, heads, programs), torch.float32, device)
    listed = bounds is not None
    launch(
        kernels.spread_pages, (batch * kv_heads, programs),
        scores, value, means, first, length, tails, budgets, *((first, first) if chosen is None else chosen.unbind()),
        *((scores, scores) if bounds is None else (bounds[0], bounds[-1])),
        *((first, first) if chosen_pages is None else chosen_pages.unbind()),
        first if pages is None else pages, first if count is None else count, part, part_max,
        *value.stride()[:3], *means.stride()[:2], row, 0 if bounds is None else bounds.shape[-1],
        0 if pages is None else pages.shape[-1], heads if budgets.shape[0] > 1 else 0,
        KV=kv_heads, G=group, DV=value_dim, GP=rows_of(group), DVP=width_of(value_dim),
        ROWS=(LISTED if listed else TOKENS).value, RANKED=chosen is None, SINKS=SINKS,
        PRECISION=mixed_precision(value.dtype), EXACT=precision(value.dtype),
    )  # fmt: skip
    return part, part_max

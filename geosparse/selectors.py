"""Selectors: rules that say which N tokens a query keeps. What the profiler measures, one entry of `SELECTORS` each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .errors import GeosparseError, did_you_mean
from .geometry import rank_of, selection_order

SINK_TOKENS = 4


@dataclass(frozen=True)
class Scored:
    """The queries of some heads and what they see: all that a selector may look at.

    Attributes:
        query: `[Hq, Q, D]`.
        key: `[Hkv, L, D]`.
        scores: `[Hq, Q, L]` fp32 logits, -inf where a token is not visible.
        seen: `[Q, L]` bool.
    """

    query: torch.Tensor
    key: torch.Tensor
    scores: torch.Tensor
    seen: torch.Tensor


Selector = Callable[[Scored, Sequence[int]], Iterator[torch.Tensor]]


def topn(rows: Scored, budgets: Sequence[int]) -> Iterator[torch.Tensor]:
    """The N tokens of largest attention weight, ties to the smaller index."""
    rank = rank_of(selection_order(rows.scores, rows.seen))
    return (rows.seen & (rank < budget) for budget in budgets)


def sink_recent(rows: Scored, budgets: Sequence[int]) -> Iterator[torch.Tensor]:
    """The first min(4, N // 2) visible tokens and the most recent ones, N in all; looks at no score."""
    place = rows.seen.cumsum(-1)
    visible = place[..., -1:]
    for budget in budgets:
        sinks = min(SINK_TOKENS, budget // 2)
        keep = rows.seen & ((place <= sinks) | (place > visible - (budget - sinks)))
        yield keep.expand(rows.scores.shape)


SELECTORS: dict[str, Selector] = {"topn": topn, "sink_recent": sink_recent}


def keep_masks(selector: str, rows: Scored, budgets: Sequence[int]) -> Iterator[torch.Tensor]:
    """For each N in `budgets` the tokens that `selector` keeps, bool `[Hq, Q, L]`.

    Raises:
        GeosparseError: No selector has that name.
    """
    check_selector(selector)
    return SELECTORS[selector](rows, budgets)


def check_selector(selector: str) -> None:
    """Raise GeosparseError unless `selector` is a name in `SELECTORS`."""
    if selector not in SELECTORS:
        raise GeosparseError(f"Unknown selector {selector!r}: {did_you_mean(selector, SELECTORS)}")

"""No scores at all: the first tokens and the last (as in StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

import torch

from .view import Choice, Sight

SINKS = 4


def sink_count(budgets: torch.Tensor) -> torch.Tensor:
    """How many of N tokens are the first ones: SINKS, but at most half."""
    return (budgets // 2).clamp_max(SINKS)


def sink_recent(sight: Sight, shared: torch.Tensor | None = None) -> Choice:
    """The first min(SINKS, N / 2) visible tokens and the most recent others."""
    seen = sight.seen.expand(sight.scores.shape[0], -1, -1, -1)
    rank, visible = seen.cumsum(-1) - 1, seen.sum(-1, keepdim=True)
    budgets = sight.budgets.unsqueeze(-1)
    sinks = sink_count(budgets)
    keep = seen & ((rank < sinks) | (rank >= visible - (budgets - sinks)))
    keep = keep.expand(sight.scores.shape).to(sight.scores.dtype)
    return Choice(keep, keep.sum(-1), sight.scores)

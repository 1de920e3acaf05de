"""No scores at all: the first tokens and the last (as in StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from .rule import selector
from .view import Choice, SelectorView

SINKS = 4


@selector(
    "the first 4 tokens (at most N / 2) and the most recent ones",
    reads="nothing",
    scans=(),
    knows_rest=False,
    kernel=4,
    prefill_kernel=True,
)
def sink_recent(view: SelectorView) -> Choice:
    """The first min(SINKS, N / 2) visible tokens and the most recent others."""
    seen = view.seen.expand(view.scores.shape[0], -1, -1, -1)
    rank, visible = seen.cumsum(-1) - 1, seen.sum(-1, keepdim=True)
    budgets = view.budgets.unsqueeze(-1)
    sinks = (budgets // 2).clamp_max(SINKS)
    keep = seen & ((rank < sinks) | (rank >= visible - (budgets - sinks)))
    keep = keep.expand(view.scores.shape).to(view.scores.dtype)
    return Choice(keep, keep.sum(-1), view.scores)

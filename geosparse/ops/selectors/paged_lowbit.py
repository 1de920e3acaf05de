"""Two stages: page bounds choose candidates, coded keys choose among them."""

from __future__ import annotations

import torch

from ..topn import top_n
from .view import Choice, Sight

# Candidates per kept token: page bounds need about this many times the tokens of exact top-N (results/LOG.md).
OVERSAMPLE = 4


def paged_lowbit(sight: Sight, shared: torch.Tensor | None = None) -> Choice:
    """The N highest coded logits within the pages of highest bound that hold OVERSAMPLE N tokens, and the last page."""
    candidates = sight.candidates(OVERSAMPLE * sight.budgets)
    keep, kept = top_n(sight.coarse.masked_fill(~candidates, -torch.inf), sight.budgets)
    _, mean = sight.page_logits
    return Choice(
        keep, kept, torch.where(candidates, sight.coarse, sight.from_pages(mean).masked_fill(~sight.seen, -torch.inf))
    )

"""Page bounds (as in Quest, arXiv 2406.10774): the keys of a few pages are read, no others."""

from __future__ import annotations

import torch

from ..topn import top_n
from .view import Choice, Sight


def paged(sight: Sight, shared: torch.Tensor | None = None) -> Choice:
    """The N highest logits within the ceil(N / PAGE) pages of highest bound and the page that is not complete.

    The mass of the other pages is estimated from the middle and the spread of their bounds.
    """
    candidates = sight.candidates(sight.budgets)
    keep, kept = top_n(sight.scores.masked_fill(~candidates, -torch.inf), sight.budgets)
    _, mean = sight.page_logits
    return Choice(
        keep, kept, torch.where(candidates, sight.scores, sight.from_pages(mean).masked_fill(~sight.seen, -torch.inf))
    )

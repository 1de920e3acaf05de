"""Page bounds (as in Quest, arXiv 2406.10774): the keys of a few pages are read, no others."""

from __future__ import annotations

import torch

from .rule import selector
from .view import Choice, SelectorView


@selector(
    "the N highest scores within the N / 16 pages of 16 tokens with the highest score bound",
    reads="two bounds per page and channel, and the keys of a few pages",
    scans=("bounds",),
    oversample=1,
    kernel=2,
)
def paged(view: SelectorView) -> Choice:
    """The N highest logits within the ceil(N / PAGE) pages of highest bound and the page that is not complete.

    The mass of the other pages is estimated from the middle and the spread of their bounds.
    """
    candidates = view.candidates(view.budgets)
    chosen = view.highest(view.scores.masked_fill(~candidates, -torch.inf))
    return chosen._replace(estimate=torch.where(candidates, view.scores, view.mean_of_pages))

"""Two stages: page bounds choose candidates, coded keys choose among them."""

from __future__ import annotations

import torch

from .rule import selector
from .view import Choice, SelectorView

# Candidates per kept token: page bounds need about this many times the tokens of exact top-N (results/LOG.md).
OVERSAMPLE = 4


@selector(
    "candidates by page bounds, then 4-bit codes among them",
    name="paged+lowbit",
    reads="two bounds per page and channel, and the codes of the candidates",
    scans=("bounds",),
    oversample=OVERSAMPLE,
    coded=True,
    kernel=3,
)
def paged_lowbit(view: SelectorView) -> Choice:
    """The N highest coded logits within the pages of highest bound that hold OVERSAMPLE N tokens, and the last page."""
    candidates = view.candidates(OVERSAMPLE * view.budgets)
    chosen = view.highest(view.coarse.masked_fill(~candidates, -torch.inf))
    return chosen._replace(estimate=torch.where(candidates, view.coarse, view.mean_of_pages))

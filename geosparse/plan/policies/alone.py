"""The first pass by itself: every head as if all others were dense."""

from __future__ import annotations

import torch

from ..candidates import Candidates
from .policy import policy


@policy(
    "the same without the correction: each head is priced as if all others were dense", measure="alone", shareable=True
)
def alone(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """Least summed (g . e)^2, without what the errors of other heads add or cancel."""
    return candidates.spend(candidates.curves("alone"), total)

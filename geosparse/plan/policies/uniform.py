"""The baseline: every head alike."""

from __future__ import annotations

import torch

from ..candidates import Candidates
from .policy import policy


@policy("baseline: every head gets the same N", shareable=True)
def uniform(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """The same N everywhere; what does not divide goes to the first heads."""
    model = candidates.profile.model
    buyers = model.layers * (model.kv_heads if candidates.share_kv else model.heads)
    members = model.layers * model.heads // buyers
    budgets = torch.full((buyers,), total // members // buyers, dtype=torch.int64, device="cpu")
    budgets[: total // members % buyers] += 1
    return budgets.view(model.layers, -1).repeat_interleave(members, dim=-1)

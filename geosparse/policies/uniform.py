"""The baseline: every head alike."""

from __future__ import annotations

import torch

from ..plan import PlanTail
from ..profile import Profile


def uniform(profile: Profile, tail: PlanTail, total: int, seed: int) -> torch.Tensor:
    """The same N everywhere; what does not divide goes to the first heads."""
    layers, heads = profile.model.layers, profile.model.heads
    budgets = torch.full((layers * heads,), total // (layers * heads), dtype=torch.int64)
    budgets[: total % (layers * heads)] += 1
    return budgets.view(layers, heads)

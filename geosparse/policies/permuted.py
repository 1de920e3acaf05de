"""Control: the right budgets on the wrong heads."""

from __future__ import annotations

import torch

from ..plan import PlanTail
from ..profile import Profile
from .fisher import fisher


def permuted(profile: Profile, tail: PlanTail, total: int, seed: int) -> torch.Tensor:
    """The budgets of `fisher`, dealt to random heads of the model."""
    budgets = fisher(profile, tail, total, seed)
    order = torch.randperm(budgets.numel(), generator=torch.Generator().manual_seed(seed))
    return budgets.flatten()[order].view_as(budgets)

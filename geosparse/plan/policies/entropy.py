"""Spend tokens where attention is spread."""

from __future__ import annotations

import torch

from ..candidates import Candidates
from .apportion import apportion, caps
from .policy import policy


@policy("heads whose attention is spread most widely: N in proportion to the effective set size")
def entropy(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """In proportion to the effective set size, exp of the mean entropy of the weights (forward pass only)."""
    size = candidates.profile.mean("entropy").exp()
    return apportion(lambda factor: size * factor, total, caps(candidates.profile, total))

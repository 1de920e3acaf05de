"""Spend tokens where attention is spread."""

from __future__ import annotations

import torch

from ..planning.choices import Choices
from .policy import policy
from .scale import caps, scale_to


@policy("N in proportion to exp of the mean entropy of the attention weights")
def entropy(choices: Choices, total: int, seed: int) -> torch.Tensor:
    """In proportion to the effective set size, exp of the mean entropy of the weights (forward pass only)."""
    size = choices.profile.mean("entropy").exp()
    return scale_to(lambda factor: size * factor, total, caps(choices.profile, total))

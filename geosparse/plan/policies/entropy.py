"""Spend tokens where attention is spread."""

from __future__ import annotations

import torch

from ..candidates import Choices
from .apportion import caps, scale_to
from .policy import policy


@policy("heads whose attention is spread most widely: N in proportion to the effective set size")
def entropy(choices: Choices, total: int, seed: int) -> torch.Tensor:
    """In proportion to the effective set size, exp of the mean entropy of the weights (forward pass only)."""
    size = choices.profile.mean("entropy").exp()
    return scale_to(lambda factor: size * factor, total, caps(choices.profile, total))

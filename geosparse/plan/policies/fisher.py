"""The default policy: spend tokens where the loss feels them."""

from __future__ import annotations

import torch

from ..candidates import Candidates
from .policy import policy


@policy(
    "heads whose error raises the loss most: squared product of loss gradient and output error, corrected by how "
    "errors of heads add up",
    measure="fisher",
    shareable=True,
)
def fisher(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """Least summed price: (g . e)^2, the loss gradient times the head's error, squared, by the factor that the errors
    of all other heads make of it where the profile has a second pass (`geosparse.artifacts.interplay`)."""
    return candidates.spend(candidates.curves("fisher"), total)

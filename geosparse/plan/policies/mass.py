"""Spend tokens where attention mass is missing."""

from __future__ import annotations

import torch

from ..candidates import Candidates
from .policy import policy


@policy("heads that miss most attention mass", shareable=True)
def mass(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """Least summed missing attention mass 1 - M(N) (forward pass only; any tail alike).

    The weight of a learned sink, which no token has, counts as missing at every N below the limit.
    """
    return candidates.spend(candidates.missing_mass(), total)

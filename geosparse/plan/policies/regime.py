"""The regimes of arXiv 2602.01893: all heads of a regime are alike."""

from __future__ import annotations

import torch

from ...geometry.regimes import SIGNATURES, typical
from ..candidates import Candidates
from .apportion import apportion, caps
from .policy import policy


@policy("heads in proportion to the typical effective set size of their regime")
def regime(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """In proportion to the typical effective set size of the head's regime (forward pass only; any tail alike).

    The typical size of a regime is exp of the mean entropy of its heads, each weighted by its probability of being one;
    a head between regimes gets the mean of theirs, by the same probabilities.
    """
    chance = candidates.profile.regimes().probability
    log_set = typical(candidates.profile.longest("signatures"))[..., SIGNATURES.index("log_set")]
    weight = chance.sum((0, 1)).clamp_min(torch.finfo(torch.float64).tiny)
    sizes = ((chance * log_set.unsqueeze(-1)).sum((0, 1)) / weight).exp()
    size = (chance * sizes).sum(-1)
    return apportion(lambda factor: size * factor, total, caps(candidates.profile, total))

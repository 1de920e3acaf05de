"""Control: budgets that know nothing, in spread or in place."""

from __future__ import annotations

import math

import torch

from ..candidates import Candidates
from .apportion import apportion, caps
from .policy import policy


@policy("control: random N, log N uniform")
def random(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """Random budgets: log N uniform between 0 and log of the top, N = top^u with u from the seed.

    The top is the number at which the budgets, cut to what a head can keep and rounded, sum to `total`.
    """
    most = caps(candidates.profile, total)
    share = torch.rand(most.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), device="cpu")
    return apportion(lambda top: (share * math.log(top)).exp(), total, most)

"""The operating regime of arXiv 2602.01893: the N at which a head's selection stands out most from the rest."""

from __future__ import annotations

import torch

from ...artifacts.profile import Profile
from ..candidates import Candidates
from .apportion import apportion, caps
from .policy import policy

# The smallest N whose F is not 1 by definition.
MIN_BUDGET = 2


@policy("heads in proportion to the N at which their selection stands out most from random sets")
def separability(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """Each head's N of largest F in excess of random, scaled to the budget (forward pass only; any tail alike).

    A preference, not an optimum: N = c N*, cut to 1 and to what a head can keep, with the one factor c for all heads
    at which the sum is `total`; rounded down, the missing tokens go to the largest fractions, among equal fractions to
    the larger excess. F rises again where N nears the number of visible tokens, random sets' less: N* may well be the
    largest measured budget.
    """
    wanted, excess = operating_point(candidates.profile)
    return apportion(lambda factor: wanted * factor, total, caps(candidates.profile, total), excess)


def operating_point(profile: Profile) -> tuple[torch.Tensor, torch.Tensor]:
    """N* and the excess F there, each `[layers, Hq]` fp64.

    N* is the measured N >= 2 of largest F - F_random (mean over windows), the smallest of equals. Budgets at which it
    is NaN (no query sees more than N tokens) do not count; a head without any other has N* = 2 and excess 0.
    """
    excess = profile.excess_f1().nanmean(0)
    columns = [column for column, budget in enumerate(profile.budgets) if budget >= MIN_BUDGET]
    if not columns:
        shape = excess.shape[:2]
        return torch.full(shape, float(MIN_BUDGET), dtype=torch.float64, device="cpu"), torch.zeros(
            shape, dtype=torch.float64, device="cpu"
        )
    most, best = excess[..., columns].nan_to_num(nan=-torch.inf).max(-1)
    wanted = torch.tensor(profile.budgets, dtype=torch.float64, device="cpu")[columns][best]
    none = most.isinf()
    return wanted.masked_fill(none, MIN_BUDGET), most.masked_fill(none, 0.0)

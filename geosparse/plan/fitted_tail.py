"""The fitted tail: four shares of the missing mass per head (`ops.tails`), by least squares over calibration text.

The error of a head is linear in the shares, so that a profile's second moments (`artifacts.tail_moments`) give the
shares of least error at any N, and that error. The objective is the mean (g . e)^2, which the loss feels, with a part
of |W_O e|^2, which is known from many more numbers. A ridge draws each head to the best of the named tails.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..artifacts.profile import Profile
from ..artifacts.tail_moments import error_at
from ..ops.tails import TAIL_RULES

OUTPUT_PART = 0.3
"""How much of the objective is |W_O e|^2; both are in units of the error of the best named tail."""
RIDGE = 0.003
"""Of the second moment of what each share adds."""
NOTHING = 1e-12
"""The power of what a share adds, over that of the share that adds most, below which it adds nothing."""
MOST = 4.0
"""The largest share, of either sign."""
NAMED = torch.tensor([rule.shares for rule in TAIL_RULES.values()], dtype=torch.float64, device="cpu")


class Fit(NamedTuple):
    """Shares `[layers, Hq, budgets, 4]` and the mean (g . e)^2 and |W_O e|^2 at them, `[layers, Hq, budgets]`."""

    shares: torch.Tensor
    fisher: torch.Tensor
    output: torch.Tensor


def fitted(profile: Profile, selector: str) -> Fit:
    """The fit at every measured N; raises GeosparseError for a profile without moments of tails."""
    fisher, output = profile.tail_products(selector)
    shares = fit_shares(fisher, output)
    return Fit(shares, error_at(fisher, shares), error_at(output, shares))


def shares_at(profile: Profile, selector: str, n_keep: torch.Tensor) -> torch.Tensor:
    """The shares `[layers, Hq, 4]` at the budgets `[layers, Hq]`: between two measured N on a line in log N."""
    shares = fitted(profile, selector).shares
    grid = torch.tensor(profile.budgets, dtype=torch.float64, device="cpu").log()
    at = n_keep.double().clamp(profile.budgets[0], profile.budgets[-1]).log()
    right = torch.searchsorted(grid, at.contiguous()).clamp(1, len(grid) - 1)
    part = ((at - grid[right - 1]) / (grid[right] - grid[right - 1])).unsqueeze(-1)
    pick = right[..., None, None].expand(*right.shape, 1, shares.shape[-1])
    before, after = (shares.gather(2, place).squeeze(2) for place in (pick - 1, pick))
    return before + part * (after - before)


def fisher_at(profile: Profile, selector: str, shares: torch.Tensor) -> torch.Tensor:
    """The mean (g . e)^2 `[layers, Hq, budgets]` of heads with `shares` `[layers, Hq, 4]`, fitted to whatever text."""
    fisher, _ = profile.tail_products(selector)
    return error_at(fisher, shares.unsqueeze(2).expand(*fisher.shape[:3], -1))


def fit_shares(
    fisher: torch.Tensor, output: torch.Tensor, output_part: float = OUTPUT_PART, ridge: float = RIDGE
) -> torch.Tensor:
    """Shares `[..., 4]` of least error, from mean products `[..., PARTS, PARTS]` of (g . part) and of W_O part."""
    tiny = torch.finfo(torch.float64).tiny
    named = NAMED.expand(*fisher.shape[:-2], *NAMED.shape)
    errors = [error_at(products.unsqueeze(-3), named) for products in (fisher, output)]
    best = errors[0].argmin(-1)
    start = NAMED[best]
    scales = [error.gather(-1, best.unsqueeze(-1)).unsqueeze(-1).clamp_min(tiny) for error in errors]
    products = (1 - output_part) * fisher / scales[0] + output_part * output / scales[1]
    within, across = products[..., 1:, 1:], products[..., 1:, 0]
    power = within.diagonal(dim1=-2, dim2=-1)
    # Shares that add nothing anywhere, as where there are no pages, have no equation; theirs is the start's.
    used = (power > 0) & (power > NOTHING * power.amax(-1, keepdim=True))
    lack = (across - (within @ start.unsqueeze(-1)).squeeze(-1)).masked_fill(~used, 0.0)
    both = used.unsqueeze(-1) & used.unsqueeze(-2)
    left = torch.where(both, within, 0.0) + torch.diag_embed(torch.where(used, ridge * power, 1.0))
    change = torch.linalg.solve(left, lack)
    shares: torch.Tensor = (start + change).clamp(-MOST, MOST)
    return shares

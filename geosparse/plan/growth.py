"""The budget law: how the tokens that a head wants grow with the context, from a profile of several lengths.

At each length every head buys the tokens that are worth more than one price, the price of the plan. log N against log
length, fitted over all lengths and a few prices around that one, gives the head's exponent. Few windows make it noisy:
each exponent is drawn towards the model's median as far as its own standard error asks (empirical Bayes).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch

from ..artifacts.profile import Profile
from .candidates import Candidates
from .error_curves import budgets_at_price, marginal_gains

# Prices around that of the plan.
PRICES = (0.25, 0.5, 1.0, 2.0, 4.0)
MAX_GROWTH_EXPONENT = 1.5
"""The largest exponent of a law: one that grows faster than the context is noise."""


class Growth(NamedTuple):
    """A fitted law.

    Attributes:
        exponents: `[layers, Hq]` fp64 from 0 to MAX_GROWTH_EXPONENT.
        typical: Their median.
        left_out: Summed |N predicted - N chosen| over summed N chosen at the longest length, predicted by the law of
            the others; None where there are fewer than three lengths.
    """

    exponents: torch.Tensor
    typical: float
    left_out: float | None


def law_of(profile: Profile, candidates: Candidates, measure: str, tokens: float) -> Growth | None:
    """The law around the price at which `tokens` in all are spent at the length of `candidates`.

    Args:
        profile: Measurements at all lengths.
        candidates: The candidates at one of them.
        measure: The error that is paid for: "fisher" or "output_error".
        tokens: Over all query heads.

    Returns:
        Exponents `[layers, Hq]`; None where there is only one length.
    """
    if len(profile.distinct_lengths) == 1:
        return None
    gains = {}
    for length in profile.distinct_lengths:
        there = replace(candidates, profile=profile.at(length))
        gains[length] = marginal_gains(there.pooled(there.curves(measure)))
    near = gains[candidates.profile.length]
    rest = round(tokens / candidates.members) - near[..., 0].numel()
    ranked = near.flatten().sort(descending=True).values
    price = float(ranked[min(max(rest - 1, 0), ranked.numel() - 1)])
    growth = fit_growth(gains, price, torch.tensor(profile.limits, dtype=torch.int64, device="cpu"))
    return growth._replace(exponents=growth.exponents.repeat_interleave(candidates.members, dim=-1))


def fit_growth(gains: Mapping[int, torch.Tensor], price: float, limits: torch.Tensor) -> Growth:
    """The law of budgets bought at `price`.

    Args:
        gains: Per length what each further token is worth, `[layers, H, length - 1]`: `marginal_gains`.
        price: Of a token, in the unit of the gains.
        limits: `[layers]`, the most tokens that a query sees; what sees no more at any length does not grow.
    """
    lengths = sorted(gains)
    budgets = torch.stack(
        [torch.stack([budgets_at_price(-gains[length], price * factor) for factor in PRICES]) for length in lengths]
    )
    fixed = limits <= lengths[0]
    exponents = _exponents(lengths, budgets.double().log(), fixed)
    left_out = None
    if len(lengths) > 2:
        earlier = _exponents(lengths[:-1], budgets[:-1].double().log(), fixed)
        middle = PRICES.index(1.0)
        guess = budgets[-2, middle] * (lengths[-1] / lengths[-2]) ** earlier
        left_out = float((guess - budgets[-1, middle]).abs().sum() / budgets[-1, middle].sum())
    moving = exponents[~fixed] if bool((~fixed).any()) else exponents
    return Growth(exponents, float(moving.median()), left_out)


def _exponents(lengths: list[int], logs: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Shrunk slopes `[layers, H]` of `logs` `[lengths, prices, layers, H]`."""
    x = torch.tensor([math.log(length) for length in lengths], dtype=torch.float64, device="cpu")
    x = (x - x.mean())[:, None, None, None]
    y = logs - logs.mean(0, keepdim=True)
    spread = x.square().sum()
    slopes = (x * y).sum(0) / spread
    slope = slopes.mean(0)
    freedom = max(1, len(lengths) - 2)
    # Prices share their windows, so that they are one observation, not several.
    error = (y - x * slope).square().sum(0).mean(0) / freedom / spread
    moving = slope[~fixed]
    if not moving.numel():
        return torch.zeros_like(slope)
    centre = moving.median()
    real = ((moving - centre).square().mean() - error[~fixed].mean()).clamp_min(0.0)
    weight = real / (real + error).clamp_min(torch.finfo(torch.float64).tiny)
    shrunk = (centre + weight * (slope - centre)).clamp(0.0, MAX_GROWTH_EXPONENT)
    return shrunk.masked_fill(fixed[:, None], 0.0)

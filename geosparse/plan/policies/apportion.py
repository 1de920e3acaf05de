"""Scale budgets that have a shape but not a sum: whole numbers that add up exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ...artifacts.profile import Profile

BISECTIONS = 100
MIN_FACTOR, MAX_FACTOR = 1e-30, 1e300


def caps(profile: Profile, total: int) -> torch.Tensor:
    """The most tokens that each head is given, `[layers, Hq]` int64.

    What its layer's queries can see at most (the sliding window, else the length), or the length where `total` is more
    than all heads can see.
    """
    most = torch.tensor(profile.limits, dtype=torch.int64, device="cpu").clamp_max(profile.length)
    most = most.unsqueeze(-1).repeat(1, profile.model.heads)
    return most if int(most.sum()) >= total else torch.full_like(most, profile.length)


def apportion(
    shape: Callable[[float], torch.Tensor], total: int, most: torch.Tensor, preference: torch.Tensor | None = None
) -> torch.Tensor:
    """Budgets of the family `shape` that sum to `total`.

    Args:
        shape: From a positive factor to budgets `[layers, Hq]` fp64 that do not fall as it grows.
        total: Tokens in all, from one per head to the sum of `most`.
        most: `[layers, Hq]` int64, the most that each head may keep.
        preference: `[layers, Hq]`; among heads with equal fractions the larger one gets the token; by default the
            first head does.

    Returns:
        `[layers, Hq]` int64 from 1 to `most`: the family at the largest factor whose sum, after cutting to that range,
        is at most `total`, rounded down; what is missing goes one by one to the largest fractions.
    """
    low, high = MIN_FACTOR, MAX_FACTOR
    for _ in range(BISECTIONS):
        middle = low**0.5 * high**0.5
        fits = _cut(shape(middle), most).sum() <= total
        low, high = (middle, high) if fits else (low, middle)
    exact = _cut(shape(low), most).flatten()
    budgets, ceiling = exact.floor().long(), most.flatten()
    order = (
        torch.arange(budgets.numel(), dtype=torch.int64, device="cpu")
        if preference is None
        else _falling(preference.flatten())
    )
    order = order[_falling((exact - exact.floor())[order])]
    while rest := total - int(budgets.sum()):
        budgets[order[budgets[order] < ceiling[order]][:rest]] += 1
    return budgets.view_as(most)


def _cut(budgets: torch.Tensor, most: torch.Tensor) -> torch.Tensor:
    return torch.minimum(budgets.clamp_min(1.0), most.double())


def _falling(values: torch.Tensor) -> torch.Tensor:
    return values.argsort(descending=True, stable=True)

"""make_plan: a Profile and a budget become a Plan.

Each head has an error curve over N. The curve is completed to every whole N, replaced by its lower convex hull, and
tokens are handed out one by one where the hull falls most: for convex curves that greedy order is the optimum of
"least summed damage at this mean N".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from .artifact import MAX_COUNT
from .errors import GeosparseError, did_you_mean
from .ops import Tail
from .plan import Plan, check_tail
from .profile import Profile
from .provenance import versions


class Policy(Protocol):
    """Budgets `[layers, Hq]` int64 summing to `total` tokens."""

    def __call__(self, profile: Profile, tail: Tail, total: int, seed: int) -> torch.Tensor:
        """`total`: tokens to hand out over all heads, at least one each."""


def fisher(profile: Profile, tail: Tail, total: int, seed: int) -> torch.Tensor:
    """Least summed (g . e)^2: the loss gradient times the head's error, squared (needs the backward pass)."""
    return spend(_complete(profile.fisher(tail), profile), total)


def output_error(profile: Profile, tail: Tail, total: int, seed: int) -> torch.Tensor:
    """Least summed relative output error |W_O e|^2 / |W_O z|^2 (forward pass only)."""
    return spend(_complete(profile.relative_output_error(tail), profile), total)


def uniform(profile: Profile, tail: Tail, total: int, seed: int) -> torch.Tensor:
    """The same N everywhere; what does not divide goes to the first heads."""
    layers, heads = profile.model.layers, profile.model.heads
    budgets = torch.full((layers * heads,), total // (layers * heads), dtype=torch.int64)
    budgets[: total % (layers * heads)] += 1
    return budgets.view(layers, heads)


def permuted(profile: Profile, tail: Tail, total: int, seed: int) -> torch.Tensor:
    """Control: the budgets of `fisher`, dealt to random heads of the model."""
    budgets = fisher(profile, tail, total, seed)
    order = torch.randperm(budgets.numel(), generator=torch.Generator().manual_seed(seed))
    return budgets.flatten()[order].view_as(budgets)


POLICIES: dict[str, Policy] = {
    "fisher": fisher,
    "output_error": output_error,
    "uniform": uniform,
    "permuted": permuted,
}
CURVES: dict[str, Callable[[Profile, Tail], torch.Tensor]] = {
    "fisher": Profile.fisher,
    "output_error": Profile.relative_output_error,
}
DEFAULT_POLICY = "fisher"
DEFAULT_TAIL: Tail = "centroid"


def make_plan(
    profile: Profile,
    mean_keep: float,
    policy: str = DEFAULT_POLICY,
    tail: Tail = DEFAULT_TAIL,
    seed: int = 0,
) -> Plan:
    """Choose how many tokens each head keeps.

    Args:
        profile: Measurements of the model.
        mean_keep: Tokens kept per head, on average; heads keep from 1 to the profile's length.
        policy: "fisher" (default), "output_error", "uniform", or the control "permuted".
        tail: What stands for the discarded tokens.
        seed: Seed of the control.

    Raises:
        GeosparseError: An unknown policy or tail, or a budget below one token.
    """
    if policy not in POLICIES:
        raise GeosparseError(f"Unknown policy {policy!r}: {did_you_mean(policy, POLICIES)}")
    check_tail(tail)
    if not math.isfinite(mean_keep) or mean_keep < 1:
        raise GeosparseError(
            "mean_keep is the mean number of tokens that a head keeps, and every head keeps at least 1: "
            f"give a finite number from 1, found {mean_keep:g}."
        )
    if not 0 <= seed <= MAX_COUNT:
        raise GeosparseError(f"seed is a whole number from 0 to {MAX_COUNT}, found {seed}.")
    heads = profile.model.layers * profile.model.heads
    total = min(round(mean_keep * heads), profile.length * heads)
    budgets = POLICIES[policy](profile, tail, total, seed)
    return Plan(
        n_keep=budgets,
        tail=tail,
        reference_length=profile.length,
        policy=policy,
        budget={"mean_keep": float(mean_keep)},
        model=profile.model,
        calibration=profile.calibration,
        predicted={"damage": predicted_damage(profile, budgets, tail)},
        provenance=versions(),
    )


def predicted_damage(profile: Profile, budgets: torch.Tensor, tail: Tail) -> float:
    """Half the summed mean (g . e)^2 of `budgets` `[layers, Hq]`: a second-order guess, nats per sampled query."""
    curves = _complete(profile.fisher(tail), profile)
    places = (budgets.clamp_max(profile.length) - 1).unsqueeze(-1)
    return 0.5 * float(curves.gather(-1, places).sum())


def _complete(curves: torch.Tensor, profile: Profile) -> torch.Tensor:
    """Error curves `[layers, Hq, G]` at the measured budgets -> `[layers, Hq, length]` at N = 1, 2, ..., length.

    Between measurements the curve is a power law (a line in log-log); from the last one below the most tokens that the
    layer's queries can see, it falls in a line to zero there.
    """
    layers = zip(curves, profile.limits, strict=True)
    return torch.stack([_complete_layer(layer, profile.budgets, limit, profile.length) for layer, limit in layers])


def _complete_layer(curves: torch.Tensor, budgets: Sequence[int], limit: int, length: int) -> torch.Tensor:
    """`_complete` for one layer, `[Hq, G]` -> `[Hq, length]`."""
    # Budgets from the limit on have no error; a power law towards zero would promise too much to those before it.
    measured = sum(budget < limit for budget in budgets) or 1
    grid = torch.tensor(budgets[:measured], dtype=torch.float64)
    n = torch.arange(1, length + 1, dtype=torch.float64)
    floor = curves.amax(-1, keepdim=True).clamp_min(1e-300) * 1e-12
    logs = curves[:, :measured].clamp_min(floor).cummin(-1).values.log()
    right = torch.searchsorted(grid, n).clamp_max(measured - 1)
    left = (right - 1).clamp_min(0)
    span = (grid[right].log() - grid[left].log()).clamp_min(1e-12)
    share = ((n.log() - grid[left].log()) / span).clamp(0.0, 1.0)
    full = (logs[:, left] * (1 - share) + logs[:, right] * share).exp()
    descent = (limit - n) / max(limit - budgets[measured - 1], 1)
    return full * descent.clamp(0.0, 1.0)


def spend(curves: torch.Tensor, total: int) -> torch.Tensor:
    """Hand out `total` tokens over heads so that the summed convex hulls of `curves` are least.

    Args:
        curves: `[layers, Hq, length]`, the damage at N = 1, 2, ..., length.
        total: Tokens in all, at least one per head.

    Returns:
        `[layers, Hq]` int64 budgets from 1 to length, summing to `total`.
    """
    layers, heads, length = curves.shape
    hulls = convex_hull(curves.reshape(-1, length))
    gains = hulls[:, :-1] - hulls[:, 1:]
    rest = total - layers * heads
    budgets = torch.ones(layers * heads, dtype=torch.int64)
    if rest > 0:
        # Gains fall along each row, so the `rest` largest of all are prefixes of rows; a stable sort keeps ties so.
        best = gains.flatten().argsort(descending=True, stable=True)[:rest]
        budgets += torch.bincount(best // (length - 1), minlength=layers * heads)
    return budgets.view(layers, heads)


def convex_hull(curves: torch.Tensor) -> torch.Tensor:
    """The largest convex function below each row of `curves` `[R, length]`, fp64."""
    import numpy as np

    hulls = np.empty(tuple(curves.shape))
    places = range(curves.shape[1])
    for row, curve in enumerate(curves.double().tolist()):  # lists: indexing numpy is several times slower
        corners: list[int] = []
        for place in places:
            while len(corners) > 1 and _above_chord(curve, corners[-2], corners[-1], place):
                corners.pop()
            corners.append(place)
        hulls[row] = np.interp(places, corners, [curve[corner] for corner in corners])
    return torch.from_numpy(hulls)


def _above_chord(curve: list[float], left: int, middle: int, right: int) -> bool:
    """Whether `middle` lies on or above the line from `left` to `right`."""
    return (curve[middle] - curve[left]) * (right - left) >= (curve[right] - curve[left]) * (middle - left)

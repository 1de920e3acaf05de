"""make_plan: a Profile and a budget become a Plan, by one of the policies."""

from __future__ import annotations

import math

import torch

from .artifact import MAX_COUNT
from .curves import complete
from .errors import GeosparseError, did_you_mean
from .ops import TAILS
from .plan import BEST, Plan, PlanTail, check_tail
from .policies import POLICIES
from .policies.permuted import deal, undo_deal
from .profile import Profile
from .provenance import versions

__all__ = ["DEFAULT_POLICY", "DEFAULT_TAIL", "POLICIES", "make_plan", "predicted_damage"]

DEFAULT_POLICY = "fisher"
DEFAULT_TAIL: PlanTail = BEST


def make_plan(
    profile: Profile,
    mean_keep: float | None = None,
    policy: str = DEFAULT_POLICY,
    tail: PlanTail = DEFAULT_TAIL,
    seed: int = 0,
    *,
    density: float | None = None,
) -> Plan:
    """Choose how many tokens each head keeps.

    Args:
        profile: Measurements of the model.
        mean_keep: Tokens kept per head, on average; heads keep from 1 to the profile's length.
        policy: A name in `POLICIES`: "fisher" (default), "output_error", "mass", "separability", "uniform", or one of
            the controls "permuted" and "random".
        tail: What stands for the discarded tokens: one of `ops.TAILS` for all heads, or "best" (default): for each head
            the one with the least (g . e)^2 at its N, or the least output error under the policy "output_error".
        seed: Seed of the controls.
        density: Instead of `mean_keep`: the same as a fraction of the profile's length, above 0 and up to 1.

    Raises:
        GeosparseError: An unknown policy or tail, a budget below one token, or not exactly one of `mean_keep` and
            `density`.
    """
    if policy not in POLICIES:
        raise GeosparseError(f"Unknown policy {policy!r}: {did_you_mean(policy, POLICIES)}")
    check_tail(tail)
    mean, budget = _budget(profile, mean_keep, density)
    if not 0 <= seed <= MAX_COUNT:
        raise GeosparseError(f"seed is a whole number from 0 to {MAX_COUNT}, found {seed}.")
    heads = profile.model.layers * profile.model.heads
    total = min(round(mean * heads), profile.length * heads)
    n_keep = POLICIES[policy](profile, tail, total, seed)
    return Plan(
        n_keep=n_keep,
        tail=tail,
        head_tails=best_tails(profile, n_keep, policy, seed) if tail == BEST else None,
        reference_length=profile.length,
        policy=policy,
        budget=budget,
        model=profile.model,
        calibration=profile.calibration,
        predicted={"damage": predicted_damage(profile, n_keep, tail)},
        provenance=versions(),
    )


def _budget(profile: Profile, mean_keep: float | None, density: float | None) -> tuple[float, dict[str, float]]:
    """Mean tokens per head, and what was asked for in the words of the one who asked."""
    if mean_keep is not None and density is None:
        if not math.isfinite(mean_keep) or mean_keep < 1:
            raise GeosparseError(
                "mean_keep is the mean number of tokens that a head keeps, and every head keeps at least 1: "
                f"give a finite number from 1, found {mean_keep:g}."
            )
        return mean_keep, {"mean_keep": float(mean_keep)}
    if density is not None and mean_keep is None:
        if not 0 < density <= 1:
            raise GeosparseError(f"density is a fraction of the profile's length: above 0, up to 1, found {density:g}.")
        if density * profile.length < 1:
            raise GeosparseError(
                f"density {density:g} of {profile.length} tokens is less than the 1 token that every head keeps: "
                f"give {1 / profile.length:.6g} or more."
            )
        return density * profile.length, {"density": float(density)}
    found = "neither" if density is None else "both"
    raise GeosparseError(f"The budget is either mean_keep or density, found {found}: give one of them.")


def best_tails(profile: Profile, n_keep: torch.Tensor, policy: str, seed: int) -> torch.Tensor:
    """For each head the tail that is predicted to cost least at its budget: `[layers, Hq]` places in TAILS.

    The permuted control deals whole heads: each N takes along the tail that it had in the plan before.
    """
    if policy == "permuted":
        return deal(best_tails(profile, undo_deal(n_keep, seed), "fisher", seed), seed)
    measure = profile.relative_output_error if policy == "output_error" else profile.fisher
    places = (n_keep.clamp_max(profile.length) - 1).unsqueeze(-1)
    costs = [complete(measure(tail), profile).gather(-1, places).squeeze(-1) for tail in TAILS]
    return torch.stack(costs).argmin(0)


def predicted_damage(profile: Profile, budgets: torch.Tensor, tail: PlanTail) -> float:
    """Half the summed mean (g . e)^2 of `budgets` `[layers, Hq]`: a second-order guess, nats per sampled query."""
    curves = complete(profile.fisher(tail), profile)
    places = (budgets.clamp_max(profile.length) - 1).unsqueeze(-1)
    return 0.5 * float(curves.gather(-1, places).sum())

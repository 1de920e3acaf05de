"""make_plan: a Profile and a budget become a Plan, by one of the policies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..artifacts.plan import Plan, PlanTail
from ..artifacts.profile import Profile
from ..errors import GeosparseError
from ..ops import SELECTORS, TAIL_FAMILIES, Budgets, check_tail
from ..ops.selectors import AUTO, ECONOMICAL, EXACT, fits
from ..ops.tails import DEFAULT_TAIL, FORMER_TAIL
from ..utils.bounds import as_number, as_whole
from ..utils.files import MAX_COUNT, is_count
from ..utils.provenance import versions
from .byte_budget import Market, Split, spend_bytes
from .candidates import Candidates, Chosen
from .cost_model import TokenBytes, split_bytes
from .error_curves import complete_at
from .growth import Growth, law_of
from .policies import DEFAULT_POLICY, POLICIES, Policy
from .policies.apportion import apportion
from .policies.permuted import deal, undo_deal
from .robust import predicted_by_kind, seen_mass
from .robust import robust as all_kinds

__all__ = ["DEFAULT_TAIL", "make_plan", "predicted_damage"]

ECONOMICAL_TOLERANCE = 0.05
"""Largest relative error increase at which `ops.selectors.ECONOMICAL` is the default selector."""
ROUNDS = 6
TYPICAL_KEEP = 32
"""Tokens per head around which the law is fitted where the budget is in bytes."""
TYPICAL_GROWTH = 0.25
"""The exponent by which a length that was not profiled is approached before its law is known."""


class Request(NamedTuple):
    """A requested budget: how much of what, and the request itself as the plan holds it."""

    kind: str
    amount: float
    budget: dict[str, float]


def make_plan(
    profile: Profile,
    mean_keep: float | None = None,
    policy: str = DEFAULT_POLICY,
    tail: PlanTail | None = None,
    seed: int = 0,
    *,
    density: float | None = None,
    bytes_read: float | None = None,
    length: int | None = None,
    selector: str | None = None,
    share_kv: bool = False,
    robust: bool = True,
) -> Plan:
    """Choose how many tokens each head keeps, how it finds them, and what stands for the rest.

    A profile of several lengths gives the budgets a law: beyond the length that is planned for they grow with the
    context, by an exponent per head (`plan.growth`), and a length that was not profiled can be planned for.

    Args:
        profile: Measurements of the model.
        mean_keep: Tokens kept per head, on average, at the length planned for; heads keep from 1 to that length.
        policy: A name in `POLICIES`: a built-in one, or one that an installed package adds by an entry point.
        tail: What stands for the discarded tokens: one of `ops.TAILS` for all heads; for each head the one of the least
            price at its N, in what the policy pays for, of all of them ("blend") or of "drop", "renormalize" and
            "centroid" ("best"), none that give mass to the mean of the visible values for heads of attention sinks that
            keep few tokens (`plan.candidates`); or shares of its own ("fitted": `plan.fitted_tail`). By default
            "fitted", or "blend" where one kind of text is weighed, the profile has nothing to fit to, or the selector
            does not know the rest.
        seed: Seed of the controls.
        density: Instead of `mean_keep`: the same as a fraction of the length, above 0 and up to 1.
        bytes_read: Instead of `mean_keep`: modelled bytes that a decode step reads of the cache (`plan.cost_model`).
        length: Context to plan for, tokens; by default the longest of the profile.
        selector: How tokens are found: a word of `ops.SELECTORS` that the profile has measured, or "auto": for each
            head the one that costs least. By default "auto" with `bytes_read`; else `ECONOMICAL`, which reads a
            fraction of what `EXACT` reads, where its measured errors are not larger by more than
            `ECONOMICAL_TOLERANCE`, else `EXACT` (`ops.selectors`).
        share_kv: The query heads of one KV group keep the same tokens.
        robust: Weigh the errors on every kind of text that the profile saw (`plan.robust`); without it, a specialised
            plan: those on the text that was given, which may lose much on other text.

    Raises:
        GeosparseError: An unknown policy, tail or selector, a budget below one token, or not exactly one of
            `mean_keep`, `density` and `bytes_read`; a length that the profile says nothing about.
    """
    POLICIES.check(policy)
    rule = POLICIES[policy]
    tail = _usual_tail(profile, selector, robust) if tail is None else tail
    check_tail(tail)
    if (whole := as_whole(seed)) is None or not 0 <= whole <= MAX_COUNT:
        raise GeosparseError(f"seed is a whole number from 0 to {MAX_COUNT}, found {seed}.")
    if share_kv and not rule.shareable:
        able = ", ".join(name for name in POLICIES if POLICIES[name].shareable)
        raise GeosparseError(f"share_kv goes with the policies {able} only, found {policy!r}.")
    length = _checked_length(profile, length)
    request = _request(length, mean_keep, density, bytes_read)
    if request.kind == "bytes" and rule.measure is None:
        able = ", ".join(name for name in POLICIES if POLICIES[name].measure is not None)
        raise GeosparseError(f"A budget in bytes goes with the policies {able} only, found {policy!r}.")
    measured = profile
    profile = all_kinds(profile, _per_head(request)) if robust else profile.own()
    near = profile.at(min(profile.distinct_lengths, key=lambda known: abs(math.log(known / length))))
    measure = rule.measure or "fisher"
    if selector is None and request.kind == "bytes":
        selector = AUTO
    elif selector is None:
        per_head = request.amount * near.length / length
        selector = _usual_selector(near, tail, share_kv, measure, per_head)
    problem = _Problem(profile, Candidates.of(near, tail, selector, share_kv), rule, measure, seed, length)
    allocation = _by_bytes(problem, request.amount) if request.kind == "bytes" else _by_tokens(problem, request.amount)
    chosen = _choose(problem, allocation)
    budgets_at = _budgets_at(problem, allocation)
    indices = chosen.selectors.flatten()
    most_used = SELECTORS.names[int(indices.mode().values)]
    return Plan(
        n_keep=allocation.budgets,
        tail=tail,
        head_tails=chosen.tails if tail in TAIL_FAMILIES else None,
        tail_shares=chosen.shares,
        reference_length=length,
        policy=policy,
        budget=request.budget,
        model=profile.model,
        calibration=measured.calibration,
        predicted=_predicted(problem, allocation, chosen),
        kinds=predicted_by_kind(measured, problem.candidates, budgets_at, chosen),
        seen=seen_mass(measured if robust else measured.own(), budgets_at),
        provenance=versions(),
        selector=most_used,
        head_selectors=None if bool((indices == indices[0]).all()) else chosen.selectors,
        growth=None if allocation.growth is None else allocation.growth.exponents,
        share_kv=share_kv,
    )


def _usual_tail(profile: Profile, selector: str | None, robust: bool) -> PlanTail:
    """The tail where none is asked for; a fit to one kind of text loses on others what named tails do not lose."""
    asked = EXACT if selector is None or selector == AUTO else selector
    SELECTORS.check(asked)
    several = robust and len(set(profile.kinds)) > 1 and profile.tail_moments is not None
    return DEFAULT_TAIL if several and fits(asked, DEFAULT_TAIL) else FORMER_TAIL


def _usual_selector(profile: Profile, tail: PlanTail, share_kv: bool, measure: str, per_head: float) -> str:
    """The selector where none is asked for, by what codes and keys cost where every head keeps `per_head` tokens."""
    if not {EXACT, ECONOMICAL} <= set(profile.selectors):
        return EXACT if EXACT in profile.selectors else AUTO
    column = min(max(round(per_head), 1), profile.length) - 1
    exact, coded = (
        float(Candidates.of(profile, tail, name, share_kv).curves(measure)[..., column].sum())
        for name in (EXACT, ECONOMICAL)
    )
    return ECONOMICAL if coded <= (1 + ECONOMICAL_TOLERANCE) * exact else EXACT


class _Problem(NamedTuple):
    """What a plan is made from: `candidates` are those at the profiled length that is nearest to `length`, `measure` is
    the error that heads and selectors are compared in."""

    profile: Profile
    candidates: Candidates
    policy: Policy
    measure: str
    seed: int
    length: int

    @property
    def near(self) -> int:
        """The length of the curves."""
        return self.candidates.profile.length

    def stretch(self, growth: Growth | None) -> torch.Tensor:
        """N at `length` over N at `near`, `[layers, Hq]`."""
        model = self.profile.model
        if growth is None:
            return torch.ones(model.layers, model.heads, dtype=torch.float64, device="cpu")
        return (self.length / self.near) ** growth.exponents

    def limits(self) -> list[int]:
        """Per layer, the most tokens that a query sees at `length`."""
        return [self.length if limit >= self.profile.length else limit for limit in self.profile.limits]


class _Allocation(NamedTuple):
    """Budgets `[layers, Hq]` at the length planned for, their law, and indices in SELECTORS where they are decided."""

    budgets: torch.Tensor
    growth: Growth | None
    selectors: torch.Tensor | None = None


def _by_tokens(problem: _Problem, mean: float) -> _Allocation:
    """Budgets of the given mean."""
    model, candidates = problem.profile.model, problem.candidates
    heads = model.layers * model.heads
    total = min(round(mean * heads), problem.length * heads)

    def policy(tokens: float) -> torch.Tensor:
        wanted = min(max(round(tokens), heads), problem.near * heads)
        budgets = problem.policy(candidates, wanted, problem.seed)
        _check_budgets(problem, budgets, wanted)
        return budgets

    start = total * (problem.near / problem.length) ** TYPICAL_GROWTH
    growth = _law(problem, start)
    if problem.length == problem.near:
        return _Allocation(policy(total), growth)
    stretch, members = problem.stretch(growth), candidates.members
    budgets = policy(start)
    for _ in range(ROUNDS):
        start *= total / float((budgets * stretch).sum())
        budgets = policy(start)
    wanted = (budgets * stretch)[:, ::members]
    most = torch.full(wanted.shape, problem.length, dtype=torch.int64, device="cpu")
    scaled = apportion(lambda factor: wanted * factor, total // members, most)
    return _Allocation(scaled.repeat_interleave(members, dim=-1), growth)


def _check_budgets(problem: _Problem, budgets: torch.Tensor, total: int) -> None:
    """Raise GeosparseError unless a policy, which may be another package's, did what a policy has to do."""
    model, members = problem.profile.model, problem.candidates.members
    shape, spent = (model.layers, model.heads), total // members * members
    whole = isinstance(budgets, torch.Tensor) and budgets.dtype == torch.int64 and tuple(budgets.shape) == shape
    if not whole or int(budgets.min()) < 1 or int(budgets.max()) > problem.near or int(budgets.sum()) != spent:
        raise GeosparseError(
            f"The policy {problem.policy.name!r} returned budgets that are not int64 {list(shape)} from 1 to "
            f"{problem.near} with the sum {spent}: mend it, or choose another policy."
        )


def _by_bytes(problem: _Problem, most: float) -> _Allocation:
    """Budgets and selectors that read `most` bytes or less."""
    model, candidates = problem.profile.model, problem.candidates
    growth = _law(problem, min(TYPICAL_KEEP, problem.near) * model.layers * model.heads)
    stretch, limits, rows = problem.stretch(growth), problem.limits(), TokenBytes(model.head_dim, model.head_dim)
    market = Market(
        {name: candidates.pooled(candidates.curve(problem.measure, name)) for name in candidates.allowed},
        1 if candidates.share_kv else model.heads // model.kv_heads,
        rows,
        torch.tensor(limits, dtype=torch.int64, device="cpu"),
        stretch[:, :: candidates.members],
    )

    def spread(split: Split) -> Split:
        selectors, amounts = (part.repeat_interleave(candidates.members, dim=-1) for part in split)
        return selectors, (amounts * stretch).round().long().clamp(1, problem.length)

    def count(split: Split) -> float:
        selectors, budgets = spread(split)
        return split_bytes(budgets, selectors, model.kv_heads, limits, rows, candidates.share_kv)

    selectors, budgets = spread(spend_bytes(market, count, most))
    return _Allocation(budgets, growth, selectors)


def _law(problem: _Problem, tokens: float) -> Growth | None:
    """The law of the policy: its own exponents where it has any, else the typical one for every head that grows."""
    growth = law_of(problem.profile, problem.candidates, problem.measure, tokens)
    if growth is None or problem.policy.measure is not None:
        return growth
    if problem.policy.deals:
        return growth._replace(exponents=deal(growth.exponents, problem.seed))
    fixed = torch.tensor(problem.profile.limits, dtype=torch.int64, device="cpu") <= problem.profile.distinct_lengths[0]
    typical = torch.full_like(growth.exponents, growth.typical).masked_fill(fixed[:, None], 0.0)
    return growth._replace(exponents=typical)


def _choose(problem: _Problem, allocation: _Allocation) -> Chosen:
    """Selector and tail of each head: those that are predicted to cost least at its budget.

    The permuted control deals whole heads: each N takes along what it had in the plan before.
    """
    at_near = (allocation.budgets / problem.stretch(allocation.growth)).round().long()
    if not problem.policy.deals:
        return problem.candidates.at(at_near, problem.measure, allocation.selectors)
    before = problem.candidates.at(undo_deal(at_near, problem.seed), "fisher")
    shares = None
    if before.shares is not None:
        shares = torch.stack([deal(share, problem.seed) for share in before.shares.unbind(-1)], -1)
    return Chosen(deal(before.selectors, problem.seed), deal(before.tails, problem.seed), shares)


def _predicted(problem: _Problem, allocation: _Allocation, chosen: Chosen) -> dict[str, float]:
    """Half the summed (g . e)^2 of the plan, bytes of a decode step, and how far the law may be trusted."""
    at_near = (allocation.budgets / problem.stretch(allocation.growth)).round().long()
    model = problem.profile.model
    rows = TokenBytes(model.head_dim, model.head_dim)
    share_kv = problem.candidates.share_kv
    facts = {
        "damage": 0.5 * problem.candidates.total("fisher", at_near, chosen),
        "bytes": split_bytes(allocation.budgets, chosen.selectors, model.kv_heads, problem.limits(), rows, share_kv),
    }
    if allocation.growth is not None:
        facts["growth"] = allocation.growth.typical
        if allocation.growth.left_out is not None:
            facts["growth_left_out_error"] = allocation.growth.left_out
    return facts


def _budgets_at(problem: _Problem, allocation: _Allocation) -> Callable[[int], torch.Tensor]:
    """From a length in tokens to the N `[layers, Hq]` of a query that sees all of it."""
    law = Budgets(
        allocation.budgets, None if allocation.growth is None else allocation.growth.exponents, problem.length
    )
    return lambda length: law.at(torch.tensor(length, dtype=torch.int64, device="cpu")).clamp_max(length)


def _per_head(request: Request) -> float:
    """Mean N, about."""
    return TYPICAL_KEEP if request.kind == "bytes" else request.amount


def _checked_length(profile: Profile, length: int | None) -> int:
    if length is None or length == profile.length:
        return profile.length
    if not is_count(as_whole(length)):
        raise GeosparseError(f"The length to plan for is a whole number of tokens from 1, found {length}.")
    if len(profile.distinct_lengths) == 1:
        raise GeosparseError(
            f"The profile has windows of {profile.length} tokens only and says nothing about {length}: profile with "
            "several --lengths, or plan for that length."
        )
    return length


def _request(length: int, mean_keep: float | None, density: float | None, bytes_read: float | None) -> Request:
    given = {"mean_keep": mean_keep, "density": density, "bytes": bytes_read}
    requested = {kind: as_number(kind, amount) for kind, amount in given.items() if amount is not None}
    if len(requested) != 1:
        names = " and ".join(requested) or "none"
        raise GeosparseError(f"The budget is one of mean_keep, density and bytes, found {names}: give one of them.")
    ((kind, amount),) = requested.items()
    if kind == "mean_keep" and (not math.isfinite(amount) or amount < 1):
        raise GeosparseError(
            "mean_keep is the mean number of tokens that a head keeps, and every head keeps at least 1: "
            f"give a finite number from 1, found {amount:g}."
        )
    if kind == "bytes" and (not math.isfinite(amount) or amount <= 0):
        raise GeosparseError(f"bytes is what a decode step reads of the cache: above 0, found {amount:g}.")
    if kind == "density":
        if not 0 < amount <= 1:
            raise GeosparseError(f"density is a fraction of the length: above 0, up to 1, found {amount:g}.")
        if amount * length < 1:
            raise GeosparseError(
                f"density {amount:g} of {length} tokens is less than the 1 token that every head keeps: "
                f"give {1 / length:.6g} or more."
            )
        return Request(kind, amount * length, requested)
    return Request(kind, amount, requested)


def predicted_damage(profile: Profile, budgets: torch.Tensor, tail: PlanTail) -> float:
    """Half the summed mean (g . e)^2 of `budgets` `[layers, Hq]`: a second-order guess, nats per sampled query."""
    price = Candidates.of(profile, tail, EXACT).measured("fisher", EXACT, tail)
    return 0.5 * float(complete_at(price, profile, budgets).sum())

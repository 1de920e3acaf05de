"""Robust plans: the errors of all kinds of text that a profile saw, as one window that stands for them.

A plan that minimises the errors on one kind of text may lose more on another than the same N for all heads does. Here
every kind counts by what a plan loses there, relative to what the same N for all heads loses there:

    minimise  sum over kinds k of  D_k(plan) / D_k(uniform N),

with D the summed (g . e)^2. Each head's error curve is thereby a weighted mean over kinds, so that everything that
plans are made by works on it. A head's curve is known from few queries of few kinds: it is drawn a little towards the
mean curve of all heads, which leaves no head with next to nothing. The mean over kinds was chosen over the worst kind
and over the worst kind of each head, because it loses less on kinds that were left out (`eval.studies.robustness`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from ..artifacts.profile import METRICS, Profile
from ..artifacts.seen import Seen
from ..artifacts.tail_moments import TailMoments
from ..geometry.regimes import typical
from ..ops import TAILS, Tail
from .candidates import SHRINKAGE, Candidates, Chosen
from .error_curves import complete_at

Arrays = Mapping[str, torch.Tensor]
WEIGHTED = ("mass", "output_error", "output_norm", "fisher", "entropy")

REFERENCE_TAIL: Tail = "blend50"
"""The tail of the uniform plan that kinds are measured against."""
MAX_RATIO = 8.0
"""By how much, at most, other kinds raise or lower an error at a length at which they were not measured."""


def kinds_of(profile: Profile) -> dict[str, Profile]:
    """The profile of each kind of text, at the length at which most kinds were measured."""
    near = _with_most_kinds(profile)
    return {kind: near.of_kinds(kind) for kind in dict.fromkeys(near.kinds)}


def robust(profile: Profile, per_head: float) -> Profile:
    """A profile with one window of each length, whose errors are those of all kinds of text.

    Args:
        profile: Measurements of several kinds.
        per_head: Mean N of the plan that is wanted, at the longest length.

    Returns:
        `profile` itself where it has one kind of text only.
    """
    if len(set(profile.kinds)) == 1:
        return profile
    kinds = kinds_of(profile)
    length = next(iter(kinds.values())).length
    keep = max(1, min(round(per_head), length - 1))
    losses = {kind: uniform_loss(part, keep) for kind, part in kinds.items()}
    together = _shrunk(_weighted({kind: _means(part) for kind, part in kinds.items()}, losses))
    own = profile.own()
    windows, nlls = [], []
    for there in own.distinct_lengths:
        part = own.at(there)
        nlls.append(part.nll)
        if there == length:
            windows.append(together)
            continue
        # What other kinds make of a head's errors is known at one length only.
        here = _means(own.at(length)) if length in own.distinct_lengths else together
        windows.append(_carried(_means(part), together, here))
    arrays = {name: torch.stack([window[name] for window in windows]).float() for name in profile.arrays}
    calibration = {key: value for key, value in profile.calibration.items() if key != "kinds"}
    calibration |= {"windows": len(windows), "lengths": list(own.distinct_lengths)}
    tails = None if profile.tail_moments is None else _tail_moments(kinds, losses, own, arrays)
    return replace(
        own,
        tail_moments=tails,
        arrays=arrays,
        lengths=own.distinct_lengths,
        nlls=tuple(nlls),
        moments=None,
        calibration=calibration,
    )


def _tail_moments(
    kinds: Mapping[str, Profile], losses: Mapping[str, float], own: Profile, arrays: Arrays
) -> TailMoments:
    """One window of each length, of the mean over kinds as in `_weighted`; at a length at which other kinds were not
    measured, those of the own text, moved as `arrays` `[lengths, ...]` move the error of REFERENCE_TAIL."""
    length = next(iter(kinds.values())).length
    loss = torch.tensor([losses[kind] for kind in kinds], dtype=torch.float64, device="cpu")
    weight = (1.0 / loss) / (1.0 / loss).sum()
    every = [_window_mean(part) for part in kinds.values()]
    together = TailMoments(
        torch.einsum("k,k...->...", weight, torch.stack([part.fisher for part in every]))
        * (loss.mean() * (1.0 / loss).mean()),
        torch.einsum("k,k...->...", weight, torch.stack([part.output for part in every])),
    )
    windows, tail = [], TAILS.index(REFERENCE_TAIL)
    for row, there in enumerate(own.distinct_lengths):
        if there == length:
            windows.append(together)
            continue
        part, here = _window_mean(own.at(there)), own.at(there).arrays["fisher"].double().mean(0)[:, tail]
        ratio = arrays["fisher"][row].double()[:, tail] / here.clamp_min(torch.finfo(torch.float32).tiny)
        windows.append(TailMoments(part.fisher * ratio.unsqueeze(-1), part.output))
    return TailMoments(
        torch.stack([window.fisher for window in windows]), torch.stack([window.output for window in windows])
    )


def _window_mean(profile: Profile) -> TailMoments:
    """The mean over windows, without that dimension."""
    moments = profile.tail_moments
    assert moments is not None
    return TailMoments(moments.fisher.mean(0), moments.output.mean(0))


def uniform_loss(profile: Profile, n_keep: int) -> float:
    """Half the summed (g . e)^2 where every head keeps `n_keep` tokens, with the tail REFERENCE_TAIL."""
    budgets = torch.full((profile.model.layers, profile.model.heads), n_keep, dtype=torch.int64, device="cpu")
    selector = profile.selectors[0]
    loss = 0.5 * float(complete_at(profile.fisher(REFERENCE_TAIL, selector), profile, budgets).sum())
    return max(loss, torch.finfo(torch.float32).tiny)


def predicted_by_kind(
    profile: Profile, candidates: Candidates, budgets: Callable[[int], torch.Tensor], chosen: Chosen
) -> dict[str, float]:
    """Half the summed (g . e)^2 of a plan on each kind of text, nats per token: a second-order guess of its excess.

    Args:
        profile: Measurements of several kinds.
        candidates: Those that the plan was made from.
        budgets: From a length in tokens to the N of every head there, `[layers, Hq]`.
        chosen: The selectors and tails of the plan.
    """
    return {
        kind: 0.5 * replace(candidates, profile=part).total("fisher", budgets(part.length), chosen)
        for kind, part in kinds_of(profile).items()
    }


def seen_mass(profile: Profile, budgets: Callable[[int], torch.Tensor]) -> Seen:
    """The range of each head's kept mass over the windows of the length at which most kinds were measured; `budgets`
    as in `predicted_by_kind`."""
    near = _with_most_kinds(profile)
    missing = (1.0 - near.arrays["mass"][:, 0].double()).clamp_min(0.0)
    mass = 1.0 - complete_at(missing, near, budgets(near.length))
    return Seen(near.length, mass.amin(0), mass.amax(0))


def _with_most_kinds(profile: Profile) -> Profile:
    """The profile at the length at which most kinds were measured, the shortest of those."""
    count = {length: len(set(profile.at(length).kinds)) for length in profile.distinct_lengths}
    return profile.at(max(count, key=lambda length: (count[length], -length)))


def _means(profile: Profile) -> Arrays:
    """Every array without its windows, fp64."""
    means = {name: array.double().nanmean(0) for name, array in profile.arrays.items()}
    return means | {"signatures": typical(profile.arrays["signatures"])}


def _weighted(kinds: Mapping[str, Arrays], losses: Mapping[str, float]) -> Arrays:
    """The mean over kinds, each error divided by the loss of the uniform plan on its kind; (g . e)^2 is in nats again,
    such that the uniform plan loses what it loses on average over kinds."""
    loss = torch.tensor([losses[kind] for kind in kinds], dtype=torch.float64, device="cpu")
    weight = (1.0 / loss) / (1.0 / loss).sum()
    stacked = {name: torch.stack([part[name] for part in kinds.values()]) for name in next(iter(kinds.values()))}
    found = {name: torch.einsum("k,k...->...", weight, stacked[name]) for name in WEIGHTED}
    found["fisher"] *= loss.mean() * (1.0 / loss).mean()
    # The geometry was measured on the text that was given only.
    found |= {name: stacked[name].nanmean(0) for name in METRICS}
    return found | {"signatures": typical(stacked["signatures"])}


def _shrunk(arrays: Arrays) -> Arrays:
    """The errors drawn towards their mean over the heads of all layers."""
    found = dict(arrays)
    for name in ("output_error", "fisher"):
        over_heads = arrays[name].mean((-3, -2), keepdim=True)
        found[name] = (1 - SHRINKAGE) * arrays[name] + SHRINKAGE * over_heads
    return found


def _carried(part: Arrays, together: Arrays, own: Arrays) -> Arrays:
    """The errors at another length, moved as all kinds move those of the own text where both were measured."""
    tiny = torch.finfo(torch.float32).tiny
    ratios = {
        name: (together[name].clamp_min(tiny) / own[name].clamp_min(tiny)).clamp(1 / MAX_RATIO, MAX_RATIO)
        for name in ("output_error", "fisher")
    }
    return dict(part) | {name: part[name] * ratio for name, ratio in ratios.items()}

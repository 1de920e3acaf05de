"""What a head may choose from: selectors and tails, and what each is measured to cost it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..artifacts.plan import PlanTail
from ..artifacts.profile import Profile
from ..errors import GeosparseError, did_you_mean
from ..geometry.regimes import SIGNATURES, typical
from ..ops import MEAN_FRACTION, SELECTORS, TAIL_FAMILIES, TAILS, Selector, Tail, expand_tail
from ..ops.selectors import AUTO, EXACT, fits, shareable
from ..ops.tails import FITTED, TailShares
from .error_curves import complete, complete_at, spend
from .fitted_tail import fisher_at, fitted, shares_at

# Heads that give more than SINK of their mass to attention sinks give none to the mean of the visible values below
# SPREAD tokens: the compressed value of a sink is far from any mean, so that where a text opens with several equal
# tokens, each of them a sink, such a head would miss its mass and the model its output.
SINK, SPREAD = 0.5, 8
MIDDLE: Tail = "blend50"
SHRINKAGE = 0.05
"""How far the error curve of a head is drawn towards the mean of all heads."""
MEASURES: Mapping[str, Callable[[Profile, str, str], torch.Tensor]] = {
    "fisher": Profile.price,
    "alone": Profile.fisher,
    "output_error": Profile.relative_output_error,
}
"""The errors that heads, tails and selectors are compared in; "alone" leaves out what other heads' errors do."""


class Chosen(NamedTuple):
    """What the heads got.

    Attributes:
        selectors: `[layers, Hq]` int64 places in `SELECTORS`.
        tails: `[layers, Hq]` int64 places in `TAILS`; of a fitted tail nothing.
        shares: `[layers, Hq, 4]` fp64, those of a fitted tail; else None.
    """

    selectors: torch.Tensor
    tails: torch.Tensor
    shares: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of every head.

    Attributes:
        profile: Measurements at one length.
        tail: The tail that was asked for, or a word of `ops.TAIL_FAMILIES`.
        allowed: Per candidate selector `[layers]` bool: where it may serve. Selectors that read an index run exactly in
            layers with a sliding window, and are no candidates there.
        share_kv: The heads of one KV group get equal budgets and select together.
    """

    profile: Profile
    tail: PlanTail
    allowed: Mapping[Selector, torch.Tensor]
    share_kv: bool = False

    @classmethod
    def of(cls, profile: Profile, tail: PlanTail, selector: str, share_kv: bool = False) -> Candidates:
        """The candidates where `selector` was asked for: a word of `SELECTORS`, or "auto" for all that are measured.

        Raises:
            GeosparseError: An unknown selector, or one that the profile does not hold; a tail or sharing that does not
                go with it.
        """
        if selector not in (*SELECTORS, AUTO):
            raise GeosparseError(f"Unknown selector {selector!r}: {did_you_mean(selector, (*SELECTORS, AUTO))}")
        if selector != AUTO and selector not in profile.selectors:
            raise GeosparseError(
                f"The profile has not measured the selector {selector!r}, only {', '.join(profile.selectors)}: profile "
                f"with --selectors {','.join((*profile.selectors, selector))}."
            )
        if selector != AUTO and not _tails(selector, tail):
            raise GeosparseError(f"The selector {selector} goes with the tail 'renormalize' only, found {tail!r}.")
        wide = torch.tensor([limit >= profile.length for limit in profile.limits], dtype=torch.bool, device="cpu")
        selectors = profile.selectors if selector == AUTO else (selector,)
        if share_kv:
            selectors = tuple(name for name in selectors if SELECTORS[name].shareable)
            if not selectors:
                raise GeosparseError(f"share_kv goes with the selectors {shareable()} only.")
        selectors = tuple(name for name in selectors if _tails(name, tail))
        allowed = {name: wide if SELECTORS[name].indexed else torch.ones_like(wide) for name in selectors}
        if not any(bool(layers.all()) for layers in allowed.values()):
            allowed[EXACT] = ~wide
        return cls(profile, tail, allowed, share_kv)

    def measured(self, measure: str, selector: Selector, tail: str) -> torch.Tensor:
        """A measured error `[layers, Hq, budgets]`: `measure` is one of MEASURES."""
        # Exact selection in windows, where no profile of it exists: the indexed one is nearly that.
        known = self._known(selector)
        if tail == FITTED:
            return self._fitted(measure, known)
        return MEASURES[measure](self.profile, tail, known)

    def _known(self, selector: Selector) -> Selector:
        return selector if selector in self.profile.selectors else self.profile.selectors[0]

    def _fitted(self, measure: str, selector: Selector) -> torch.Tensor:
        """`measured` of the fitted tail: what other heads' errors do to it is taken from the even blend's."""
        fit, profile = fitted(self.profile, selector), self.profile
        if measure == "output_error":
            norm = profile.mean("output_norm").unsqueeze(-1).clamp_min(torch.finfo(torch.float32).tiny)
            return fit.output / norm
        price = (1 - SHRINKAGE) * fit.fisher + SHRINKAGE * fit.fisher.mean((0, 1))
        if measure == "alone" or profile.interplay is None:
            return price
        return price * profile.interplay.factors[TAILS.index(MIDDLE)]

    def tails(self, selector: Selector) -> tuple[Tail, ...]:
        """The tails that `selector` may have."""
        return _tails(selector, self.tail)

    def _risky(self, tail: Tail) -> bool:
        """Whether `tail` is not for heads of sinks that keep few tokens; what was asked for is done."""
        return MEAN_FRACTION.get(tail, 0.0) > 0 and self.tail in TAIL_FAMILIES

    @property
    def sunk(self) -> torch.Tensor:
        """`[layers, Hq]` bool: heads that give more than SINK of their mass to attention sinks."""
        return typical(self.profile.arrays["signatures"])[..., SIGNATURES.index("sink_mass")] > SINK

    def curve(self, measure: str, selector: Selector) -> torch.Tensor:
        """The error of one selector with its best tail, `[layers, Hq, length]`; infinite where it may not serve."""
        tails = {tail: self.measured(measure, selector, tail) for tail in self.tails(selector)}
        curve = complete(torch.stack(list(tails.values())).amin(0), self.profile)
        safe = [rows for tail, rows in tails.items() if not self._risky(tail)]
        if len(safe) < len(tails):
            few = complete(torch.stack(safe).amin(0), self.profile)[..., : SPREAD - 1]
            curve[..., : SPREAD - 1] = torch.where(self.sunk.unsqueeze(-1), few, curve[..., : SPREAD - 1])
        return curve.masked_fill(~self.allowed[selector][:, None, None], torch.inf)

    def curves(self, measure: str) -> torch.Tensor:
        """The least error over the candidates, `[layers, Hq, length]`."""
        return torch.stack([self.curve(measure, selector) for selector in self.allowed]).amin(0)

    @property
    def members(self) -> int:
        """Query heads that get one budget."""
        model = self.profile.model
        return model.heads // model.kv_heads if self.share_kv else 1

    def pooled(self, curves: torch.Tensor) -> torch.Tensor:
        """Curves of those that get a budget, `[layers, Hq / members, length]`: summed over heads that share one."""
        layers, _, length = curves.shape
        return curves.view(layers, -1, self.members, length).sum(2)

    def spend(self, curves: torch.Tensor, total: int) -> torch.Tensor:
        """Budgets `[layers, Hq]` of least summed `curves` `[layers, Hq, length]`, `total` tokens in all."""
        return spend(self.pooled(curves), total // self.members).repeat_interleave(self.members, dim=-1)

    def missing_mass(self) -> torch.Tensor:
        """The least missing mass over the candidates, `[layers, Hq, length]`."""
        rows = []
        for selector, allowed in self.allowed.items():
            known = self._known(selector)
            missing = (1.0 - self.profile.kept_mass(known)).clamp_min(0.0)
            rows.append(complete(missing, self.profile).masked_fill(~allowed[:, None, None], torch.inf))
        return torch.stack(rows).amin(0)

    def at(self, n_keep: torch.Tensor, measure: str, selectors: torch.Tensor | None = None) -> Chosen:
        """For each head the candidate that costs least at its budget `[layers, Hq]`; with `selectors`, indices that are
        decided already, only the tail."""
        indices, costs, tails = [], [], []
        for selector, allowed in self.allowed.items():
            candidates = self.tails(selector)
            prices = self._prices(measure, selector, candidates, n_keep)
            risky = torch.tensor([self._risky(tail) for tail in candidates], dtype=torch.bool, device="cpu")[
                :, None, None
            ]
            cost, best = prices.masked_fill(risky & self.sunk & (n_keep < SPREAD), torch.inf).min(0)
            places = [0 if tail == FITTED else TAILS.index(tail) for tail in candidates]
            order = torch.tensor(places, dtype=torch.int64, device="cpu")
            indices.append(SELECTORS.names.index(selector))
            costs.append(cost.masked_fill(~allowed[:, None], torch.inf))
            tails.append(order[best])
        known = torch.tensor(indices, dtype=torch.int64, device="cpu")
        together = self.pooled(torch.stack(costs, -1)).repeat_interleave(self.members, dim=1)
        chosen = together.argmin(-1)
        if selectors is not None:
            chosen = (
                (selectors.unsqueeze(-1) == torch.tensor(indices, dtype=torch.int64, device="cpu")).long().argmax(-1)
            )
        tail = torch.stack(tails, -1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
        return Chosen(known[chosen], tail, self._shares(known[chosen], n_keep) if self.tail == FITTED else None)

    def _shares(self, selectors: torch.Tensor, n_keep: torch.Tensor) -> torch.Tensor:
        """The fitted shares `[layers, Hq, 4]` at the budgets, of the selector of each head."""
        shares = torch.zeros(*n_keep.shape, len(TailShares._fields), dtype=torch.float64, device="cpu")
        for place in sorted(set(selectors.flatten().tolist())):
            own = shares_at(self.profile, self._known(SELECTORS.names[place]), n_keep)
            shares = torch.where((selectors == place).unsqueeze(-1), own, shares)
        return shares

    def total(self, measure: str, n_keep: torch.Tensor, chosen: Chosen) -> float:
        """The summed error of `chosen` at the budgets `[layers, Hq]`; of fitted tails always (g . e)^2."""
        summed = 0.0
        for index in sorted(set(chosen.selectors.flatten().tolist())):
            name = SELECTORS.names[index]
            if chosen.shares is None:
                costs = self._prices(measure, name, TAILS, n_keep).gather(0, chosen.tails.unsqueeze(0))[0]
            else:
                costs = complete_at(fisher_at(self.profile, self._known(name), chosen.shares), self.profile, n_keep)
            summed += float(costs[chosen.selectors == index].sum())
        return summed

    def _prices(self, measure: str, selector: Selector, tails: Sequence[Tail], n_keep: torch.Tensor) -> torch.Tensor:
        """The error of each of `tails` at the budgets, `[tails, layers, Hq]`."""
        errors = torch.stack([self.measured(measure, selector, tail) for tail in tails])
        return complete_at(errors, self.profile, n_keep)


def _tails(selector: Selector, tail: str) -> tuple[Tail, ...]:
    """Of what `tail` stands for the tails that `selector` may have."""
    return tuple(each for each in expand_tail(tail) if fits(selector, each))

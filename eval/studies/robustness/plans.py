"""The plans that are compared, and what they lose on a text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from geosparse.artifacts.plan import Plan
from geosparse.artifacts.profile import BUILT_IN, Profile
from geosparse.errors import GeosparseError, did_you_mean
from geosparse.measure.loss import sparse_nll, token_nll
from geosparse.plan.make_plan import make_plan

from .texts import Cut

RELATED: dict[str, tuple[str, ...]] = {
    "documentation": ("code",),
    "python": ("code",),
    "c": ("code",),
    "javascript": ("code",),
    "html": ("markup", "tables"),
    "json": ("records",),
    "table": ("tables", "patterns"),
    "access log": ("logs",),
    "hexadecimal": ("patterns",),
    "repeated line": ("patterns",),
    "novel, CR LF": ("carriage-returns", "title-pages"),
    "title page": ("carriage-returns", "title-pages"),
    "title page, CR LF": ("carriage-returns", "title-pages"),
    "novel, capitals": ("capitals",),
    "novel, second reading": ("readings", "patterns"),
    "code, second reading": ("readings", "patterns", "code"),
    "chat": ("dialogue",),
}
"""The built-in kinds that are left out for a held-out text; for texts that are not named here, `languages`."""


@dataclass
class RobustnessStudy:
    """What the rows share; `texts` as `texts_of` gives them, `profile` of one text and the built-in kinds."""

    model: Any
    tokenizer: Any
    profile: Profile
    texts: dict[str, tuple[str, Cut]]
    length: int
    windows: int
    losses: dict[str, torch.Tensor] = field(default_factory=dict)

    def windows_of(self, text: str) -> torch.Tensor:
        """Token windows of a kind of text."""
        source, cut = self.texts[text]
        return cut(self.tokenizer, source, self.length, self.windows)

    def excess(self, plan: str, mean_keep: float, text: str) -> list[float]:
        """Nats per token over dense attention, of each window."""
        windows = self.windows_of(text)
        if text not in self.losses:
            self.losses[text] = token_nll(self.model, windows, f"dense {text}", True).double().mean(1)
        if plan not in PLANS:
            raise GeosparseError(f"There is no plan {plan!r}: {did_you_mean(plan, PLANS)}")
        made = PLANS[plan](self, mean_keep, text)
        sparse = sparse_nll(self.model, made, windows, f"{plan} {mean_keep:g} {text}", True)[0].double().mean(1)
        differences: list[float] = (sparse - self.losses[text]).tolist()
        return differences


def uniform(study: RobustnessStudy, mean_keep: float, text: str) -> Plan:
    """The same N for every head, tails as the robust plan's: fitted over all kinds."""
    return make_plan(study.profile, mean_keep, "uniform")


def uniform_blend(study: RobustnessStudy, mean_keep: float, text: str) -> Plan:
    """The same N and the same tail for every head."""
    return make_plan(study.profile, mean_keep, "uniform", "blend50")


def blend(study: RobustnessStudy, mean_keep: float, text: str) -> Plan:
    """All kinds, with a named tail for each head."""
    return make_plan(study.profile, mean_keep, tail="blend")


def specialised(study: RobustnessStudy, mean_keep: float, text: str) -> Plan:
    """The least summed price on the calibration text."""
    return make_plan(study.profile, mean_keep, robust=False)


def robust(study: RobustnessStudy, mean_keep: float, text: str) -> Plan:
    """All kinds."""
    return make_plan(study.profile, mean_keep)


def left_out(study: RobustnessStudy, mean_keep: float, text: str) -> Plan:
    """All kinds but those that are related to the text."""
    related = {BUILT_IN + kind for kind in RELATED.get(text, ("languages",))}
    kept = [kind for kind in dict.fromkeys(study.profile.kinds) if kind not in related]
    return make_plan(study.profile.of_kinds(*kept), mean_keep)


def permuted(study: RobustnessStudy, mean_keep: float, text: str) -> Plan:
    """A control: the robust plan's heads dealt to other places."""
    return make_plan(study.profile, mean_keep, "permuted")


PLANS: dict[str, Callable[[RobustnessStudy, float, str], Plan]] = {
    "uniform": uniform,
    "specialised": specialised,
    "robust": robust,
    "left-out": left_out,
    "blend": blend,
    "uniform-blend50": uniform_blend,
    "permuted": permuted,
}

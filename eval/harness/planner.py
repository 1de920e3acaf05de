"""The methods of a recipe's variants, with the plans that they follow."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from geosparse.artifacts.plan import Plan
from geosparse.artifacts.profile import Profile
from geosparse.plan.make_plan import make_plan

from .methods import Method
from .recipe import Variant

# From a variant's id, the baseline's name, the share of the context to keep, and what makes a plan of that share.
Baseline = Callable[[str, str, float, Callable[[], Plan]], Method]


class Planner:
    """The methods of a recipe's variants, planned once per context length."""

    def __init__(self, measure: Callable[[], Profile], plans: dict[tuple[str, int], Plan], baseline: Baseline) -> None:
        """Plan nothing yet.

        Args:
            measure: Makes the profile, once a plan is asked for that is not there.
            plans: By variant and length.
            baseline: Makes the method of a variant that is no plan.
        """
        self._measure = measure
        self.plans = plans
        self._baseline = baseline

    @cached_property
    def profile(self) -> Profile:
        """What plans are made from."""
        return self._measure()

    def method(self, variant: Variant, length: int) -> Method:
        """The method of a variant for a task whose contexts have `length` tokens."""
        if variant.peer is not None:
            return self._baseline(
                variant.id, variant.peer, variant.density or 0.0, lambda: self.plan(variant, length, share_kv=True)
            )
        return Method(variant.id, self.plan(variant, variant.length or length))

    def plan(self, variant: Variant, length: int, share_kv: bool = False) -> Plan:
        """The plan of a variant at a context length; `share_kv`: the query heads of a KV head keep the same tokens."""
        key = variant.id, length
        if key not in self.plans:
            known = self.profile.distinct_lengths
            self.plans[key] = make_plan(
                self.profile,
                None if variant.mean_keep is None else min(variant.mean_keep, length),
                variant.policy,
                variant.tail,
                variant.seed,
                density=variant.density,
                length=length if len(known) > 1 else known[0],
                selector=variant.selector,
                share_kv=share_kv,
            )
        return self.plans[key]

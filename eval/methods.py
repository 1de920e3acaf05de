"""How the model is run: densely, by a plan, or by a baseline's method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from geosparse.patch import sparsified
from geosparse.plan import Plan
from geosparse.planner import make_plan
from geosparse.profile import Profile

if TYPE_CHECKING:
    import torch

    from .recipe import Variant

DENSE = "dense"


class Prompt(NamedTuple):
    """A prompt after one dense pass.

    Attributes:
        cache: Keys and values of all its tokens.
        calls: Attention module -> the keyword arguments it was called with, where they were asked for.
        ids: `[1, T]`, its tokens.
    """

    cache: Any
    calls: dict[Any, dict[str, Any]]
    ids: torch.Tensor


class Method:
    """The dense model, or one that follows a plan.

    Attributes:
        id: The variant's, or "dense".
        plan: What it follows; None for the dense model.
        shrinks: It wants the prompt before it decodes: to keep a part of its keys and values, or to look at them.
        most_per_call: Tokens that a call behind the prompt may have; None: any number.
        counted: Tokens kept and visible since `forget`.
    """

    shrinks = False
    most_per_call: int | None = None

    def __init__(self, id: str = DENSE, plan: Plan | None = None) -> None:
        self.id = id
        self.plan = plan
        self.forget()

    def forget(self) -> None:
        """Start counting anew."""
        self.counted = (0, 0)

    def about(self) -> dict[str, Any]:
        """What decides its numbers: of the plan, what the model sees of it."""
        if self.plan is None:
            return {"method": self.id}
        data = self.plan.to_json()
        said = ("n_keep", "tail", "head_tails", "selector", "head_selectors", "growth", "share_kv", "reference_length")
        return {"plan": {key: data[key] for key in said if key in data}}

    @contextmanager
    def decoding(self, model: Any, counted: bool = True, own_products: bool = True) -> Iterator[None]:
        """The model runs this way inside the block; what it keeps is added to `counted`, unless told otherwise."""
        if self.plan is None:
            yield
            return
        with sparsified(model, self.plan, own_products=own_products) as receipt:
            yield
            kept, visible = int(receipt.kept.sum()), int(receipt.visible.sum())
        if counted:
            self.counted = self.counted[0] + kept, self.counted[1] + visible

    def shrunken_cache(self, model: Any, prompt: Prompt) -> Any:
        """What a method that `shrinks` leaves of the cache of a densely read prompt, which itself stays as it is."""
        raise NotImplementedError


class Planner:
    """The methods of a recipe's variants, planned once per context length."""

    def __init__(self, measure: Callable[[], Profile], plans: dict[tuple[str, int], Plan]) -> None:
        """Args: what makes the profile, once a plan is asked for that is not there; plans by variant and length."""
        self._measure = measure
        self.plans = plans

    @cached_property
    def profile(self) -> Profile:
        """What plans are made from."""
        return self._measure()

    def method(self, variant: Variant, length: int) -> Method:
        """The method of a variant for a task whose contexts have `length` tokens."""
        if variant.peer is not None:
            from .peers import peer

            return peer(
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
                variant.tail,  # type: ignore[arg-type]
                variant.seed,
                density=variant.density,
                length=length if len(known) > 1 else known[0],
                selector=variant.selector,
                share_kv=share_kv,
            )
        return self.plans[key]

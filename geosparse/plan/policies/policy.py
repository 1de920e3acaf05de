"""What a policy is: budgets per head from measurements, and what the planner has to know about them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import GeosparseError

if TYPE_CHECKING:
    import torch

    from ..candidates import Candidates

Budget = Callable[["Candidates", int, int], "torch.Tensor"]


@dataclass(frozen=True)
class Policy:
    """A function from measurements to budgets, and its facts.

    Attributes:
        name: By which users ask for it.
        budgets: `(candidates, total, seed)` -> `[layers, Hq]` int64 summing to `total` tokens, each from 1 to the
            profile's length; where `candidates.share_kv` is set equal within each KV group, the sum rounded down.
        favours: Which heads get more tokens, in a few words.
        reason: Why, one paragraph.
        measure: The error that it pays for, one of `candidates.MEASURES`; None for one that goes by something else.
            Only policies with a measure take a budget in bytes.
        shareable: Whether it can give the heads of one KV group equal budgets.
        deals: Whether it deals the heads of the fisher plan to other places, with their selectors and tails.
    """

    name: str
    budgets: Budget
    favours: str
    reason: str
    measure: str | None = None
    shareable: bool = False
    deals: bool = False

    def __call__(self, candidates: Candidates, total: int, seed: int = 0) -> torch.Tensor:
        """Budgets `[layers, Hq]`; `total`: tokens over all heads, at least one each; `seed`: of the controls."""
        return self.budgets(candidates, total, seed)


def policy(
    favours: str, *, measure: str | None = None, shareable: bool = False, deals: bool = False
) -> Callable[[Budget], Policy]:
    """Decorator that makes a Policy of a function, named after it and explained by its docstring."""

    def decorate(function: Any) -> Policy:
        reason = inspect.getdoc(function) or ""
        return Policy(function.__name__, function, favours, reason, measure, shareable, deals)

    return decorate


def adopt(name: str, content: object) -> Policy:
    """The policy that a module or an entry point holds: a Policy, or a plain function `(candidates, total, seed)`."""
    if isinstance(content, Policy):
        return content
    if not callable(content):
        raise GeosparseError(
            f"The policy {name!r} is a {type(content).__name__}: an entry point in the group 'geosparse.policies' "
            "names a function (candidates, total, seed) that returns budgets [layers, heads]."
        )
    return Policy(name, content, "defined by another package", inspect.getdoc(content) or "")

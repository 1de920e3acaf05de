"""Whether a text is like those that the profile behind a plan saw, by the mass that each head keeps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..artifacts.plan import Plan
from .capture import walk_layers

QUERIES = 64
MARGIN = 0.05
"""By how much the kept mass of a head may leave the range that was seen, before the head counts as outside."""
ALLOWED = 0.05
"""The fraction of heads that may be outside: windows of kinds of text that were seen stay below, others are above."""
NAMED = 4
"""Heads that a warning names; fewer heads outside are no reason for one."""


class Outside(NamedTuple):
    """A head whose kept mass is outside of what was seen, and by how much."""

    layer: int
    head: int
    mass: float
    distance: float


def kept_mass(model: Any, plan: Plan, tokens: torch.Tensor) -> torch.Tensor:
    """Mean kept mass of every head at the plan's budgets with exact selection, `[layers, Hq]` fp64.

    Args:
        model: The model, not sparsified.
        plan: A plan for it.
        tokens: `[L]` token ids.
    """
    length = len(tokens)
    positions = torch.unique(torch.linspace(0, length - 2, QUERIES, dtype=torch.float64, device="cpu").long())
    visible = positions + 1
    rows = []
    for layer in walk_layers(model, tokens, positions):
        alpha = layer.rows.alpha.double().cpu()
        n_keep = plan.budgets.of(layer.index).at(visible)
        total = alpha.sort(-1, descending=True).values.cumsum(-1)
        places = n_keep.expand(alpha.shape[:2]).clamp(1, alpha.shape[-1]) - 1
        rows.append(total.gather(-1, places.unsqueeze(-1)).squeeze(-1).mean(-1))
    return torch.stack(rows)


def outside(model: Any, plan: Plan, tokens: torch.Tensor) -> list[Outside]:
    """The heads whose kept mass on a text leaves what the plan's profile saw, the furthest first.

    Args:
        model: The model, not sparsified.
        plan: A plan for it; without a profile nothing is known, and nothing is outside.
        tokens: `[L]` token ids; of fewer than the profile's windows have nothing can be said.
    """
    seen = plan.seen
    if seen is None or len(tokens) < seen.length:
        return []
    mass = kept_mass(model, plan, tokens[: seen.length])
    distance = torch.maximum(seen.low - mass, mass - seen.high)
    layers, heads = (distance > MARGIN).nonzero(as_tuple=True)
    places = zip(layers.tolist(), heads.tolist(), strict=True)
    found = [Outside(layer, head, float(mass[layer, head]), float(distance[layer, head])) for layer, head in places]
    return sorted(found, key=lambda each: -each.distance)


def unfamiliar(model: Any, plan: Plan, tokens: torch.Tensor) -> str | None:
    """One sentence where NAMED heads or more are outside, and more than ALLOWED of all, else None; arguments as in
    `outside`."""
    heads = outside(model, plan, tokens)
    if len(heads) < NAMED or len(heads) <= ALLOWED * plan.n_keep.numel():
        return None
    named = ", ".join(f"layer {each.layer} head {each.head}" for each in heads[:NAMED])
    return (
        f"the text is unlike those that the plan's profile saw: {len(heads)} of {plan.n_keep.numel()} heads keep "
        f"another part of their attention mass there, most of all {named}; profile with --text on such text as well."
    )

"""Geometry of token selection in value space: pure tensor functions over one or many heads.

Shapes: `...` any leading dimensions (heads), Q sampled queries, L tokens, D value dimension, G budgets N.
`alpha` `[..., Q, L]` are attention weights (0 where a token is not visible), `value` `[..., L, D]` values,
`order` `[..., Q, L]` token indices in the order of selection, visible tokens first.
Source: arXiv 2602.01893 as restated in arXiv 2609.37879; definitions in DESIGN section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .ops import Tail


class Separation(NamedTuple):
    """How well the selected contributions separate from the rest, each `[..., Q, G]`; NaN where N >= visible."""

    precision: torch.Tensor
    recall: torch.Tensor
    f1: torch.Tensor
    margin: torch.Tensor


class TailErrors(NamedTuple):
    """The kept mass `[..., Q, G]` and, per tail, output minus dense output `[..., Q, G, D]`."""

    mass: torch.Tensor
    error: dict[Tail, torch.Tensor]


def selection_order(score: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Token indices `[..., Q, L]` in the order of selection: highest score first, ties to the smaller index, tokens
    that are not visible last.

    Args:
        score: `[..., Q, L]`.
        seen: `[..., Q, L]` bool.
    """
    return score.masked_fill(~seen, -torch.inf).argsort(dim=-1, descending=True, stable=True)


def random_order(seen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random order of the visible tokens: the nested control sets are its prefixes."""
    noise = torch.rand(seen.shape, generator=generator).to(seen.device)
    return selection_order(noise, seen)


def rank_of(order: torch.Tensor) -> torch.Tensor:
    """The place of each token in `order`, `[..., Q, L]`."""
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)


def separation(
    alpha: torch.Tensor, value: torch.Tensor, order: torch.Tensor, seen: torch.Tensor, budgets: Sequence[int]
) -> Separation:
    """Precision, recall, F and margin of the N first contributions in `order` around their own sum (Euclidean).

    The centre is s = sum over the selected of y_i, not renormalised; rho_max is the largest distance of a selected
    contribution from it, rho_min the smallest of an unselected one. Precision = N / (N + #{j not in S: D_j <=
    rho_max}), recall = #{i in S: D_i < rho_min} / N, margin = rho_min - rho_max. N = 1 is trivial for any rule.

    Distances are compared as |y|^2 - 2 y.s, which leaves out the |s|^2 that all share; tokens lie in selection order,
    so that a set is a prefix.
    """
    rank = rank_of(order)
    sorted_alpha = alpha.gather(-1, order)
    lengths = value.square().sum(-1).unsqueeze(-2).expand_as(alpha).gather(-1, order)
    norm = (sorted_alpha.square() * lengths).masked_fill_(~seen.gather(-1, order), torch.inf)
    visible = seen.sum(-1)
    columns = []
    for budget in budgets:
        centre = (alpha * (rank < budget)) @ value
        along = (centre @ value.transpose(-1, -2)).gather(-1, order)
        distance = torch.addcmul(norm, sorted_alpha, along, value=-2)
        chosen, rest = distance[..., :budget], distance[..., budget:]
        outer, inner = chosen.amax(-1, keepdim=True), rest.amin(-1, keepdim=True)
        precision = budget / (budget + (rest <= outer).to(alpha.dtype).sum(-1))
        recall = (chosen < inner).to(alpha.dtype).sum(-1) / budget
        f1 = 2 * precision * recall / (precision + recall).clamp_min(torch.finfo(alpha.dtype).tiny)
        shared = centre.square().sum(-1, keepdim=True)
        margin = (inner + shared).clamp_min(0.0).sqrt() - (outer + shared).clamp_min(0.0).sqrt()
        column = torch.stack([precision, recall, f1, margin.squeeze(-1)])
        columns.append(column.masked_fill(visible <= budget, torch.nan))
    return Separation(*torch.stack(columns, dim=-1))


def tail_errors(
    alpha: torch.Tensor, value: torch.Tensor, order: torch.Tensor, seen: torch.Tensor, budgets: Sequence[int]
) -> TailErrors:
    """What each tail gets wrong when only the N first tokens of `order` are kept: sparse minus dense head output.

    With z the dense output, s the kept sum, M the kept mass and v_bar the mean visible value (DESIGN section 4):
    drop: s - z; renormalize: s / M - z; centroid: s + (1 - M) v_bar - z. Where `alpha` sums to less than 1, the rest is
    the weight of a learned sink, which has no value and is always kept.
    """
    rank = rank_of(order)
    dense = alpha @ value
    weight = seen.to(alpha.dtype)
    mean = (weight / weight.sum(-1, keepdim=True).clamp_min(1.0)) @ value
    masses, kept = [], []
    for budget in budgets:
        selected = alpha * (rank < budget)
        masses.append(selected.sum(-1))
        kept.append(selected @ value)
    mass, total = torch.stack(masses, -1), torch.stack(kept, -2)
    everything = alpha.sum(-1, keepdim=True)
    missing = (everything - mass).clamp_min(0.0).unsqueeze(-1)
    certain = (mass + (1 - everything)).clamp_min(torch.finfo(alpha.dtype).tiny).unsqueeze(-1)
    dense, mean = dense.unsqueeze(-2), mean.unsqueeze(-2)
    complete = (seen.sum(-1, keepdim=True) <= torch.tensor(list(budgets), device=seen.device)).unsqueeze(-1)
    errors: dict[Tail, torch.Tensor] = {
        "drop": total - dense,
        "renormalize": total / certain - dense,
        "centroid": total + missing * mean - dense,
    }
    return TailErrors(mass, {tail: error.masked_fill(complete, 0.0) for tail, error in errors.items()})

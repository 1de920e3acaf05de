"""How well selected contributions separate from the rest in value space: pure tensor functions over one or many heads.

Shapes: `...` any leading dimensions (heads), Q sampled queries, L tokens, D value dimension, G budgets N.
`alpha` `[..., Q, L]` are attention weights (0 where a token is not visible), `value` `[..., L, D]` values,
`order` `[..., Q, K]` token indices in the order of selection, visible tokens first, K at least the largest N measured.
Source: arXiv 2602.01893 as restated in arXiv 2609.37879; definitions in DESIGN section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch

from ..ops.cpu.separation import separate, separates

Distance = Literal["euclidean", "cosine"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)

# Added to the product of norms in the cosine distance.
COSINE_FLOOR = 1e-12
# Two distances whose terms differ by fewer rounding steps than this are equal: copies of a token must tie.
ROUNDING_STEPS = 4
# Up to as many selected are compared with all others one by one, more by sorting those.
MAX_UNSORTED = 2


class Separation(NamedTuple):
    """How well the selected contributions separate from the rest, each `[..., Q, G]`; NaN where N >= visible."""

    precision: torch.Tensor
    recall: torch.Tensor
    f1: torch.Tensor
    margin: torch.Tensor
    inversions: torch.Tensor


class Comparison(NamedTuple):
    """The unselected contributions against the selected ones, each int64 `[..., Q]`.

    `most`: the unselected no further than the furthest selected one. `clear`: the selected nearer than all unselected.
    `inversions`: pairs of which the unselected one is no further. `outer`, `inner`: the tokens of the furthest selected
    and of the nearest unselected one.
    """

    most: torch.Tensor
    clear: torch.Tensor
    inversions: torch.Tensor
    outer: torch.Tensor
    inner: torch.Tensor


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
    noise = torch.rand(seen.shape, generator=generator, dtype=torch.float32, device="cpu").to(seen.device)
    return selection_order(noise, seen)


def contribution_score(alpha: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """|y_i| = alpha_i |v_i|, `[..., Q, L]`: the score of the contribution ranking."""
    lengths: torch.Tensor = torch.linalg.vector_norm(value, dim=-1)
    return alpha * lengths.unsqueeze(-2)


def rank_of(order: torch.Tensor) -> torch.Tensor:
    """The rank of each token in a complete `order`, `[..., Q, L]`."""
    ranks = torch.arange(order.shape[-1], device=order.device, dtype=torch.int64).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks)


def separation(
    alpha: torch.Tensor,
    value: torch.Tensor,
    order: torch.Tensor,
    seen: torch.Tensor,
    budgets: Sequence[int],
    distance: Distance = "euclidean",
) -> Separation:
    """Precision, recall, F, margin and inversions of the N first contributions in `order` around their own sum.

    The centre is s = sum over the selected of y_i, not renormalised. With D the distance of a contribution from it,
    rho_max the largest of a selected and rho_min the smallest of an unselected one: precision = N / (N + #{j not in S:
    D_j <= rho_max}), recall = #{i in S: D_i < rho_min} / N, F = 2 P R / (P + R), margin = rho_min - rho_max, inversions
    = #{(i in S, j not in S): D_j <= D_i}. N = 1 is trivial for any rule (Euclidean).

    Euclidean distances are compared as |y|^2 - 2 y.s, which leaves out the |s|^2 that all share; the cosine distance is
    1 - y.s / (|y| |s| + 1e-12). Distances that differ by rounding only count as equal.

    Args:
        alpha: `[..., Q, L]`.
        value: `[..., L, D]`.
        order: `[..., Q, K]`, K >= the largest budget below L.
        seen: `[..., Q, L]` bool, or broadcastable to it.
        budgets: The N.
        distance: "euclidean" or "cosine".
    """
    return separations(alpha, value, order, seen, budgets, (distance,))[distance]


def separations(
    alpha: torch.Tensor,
    value: torch.Tensor,
    order: torch.Tensor,
    seen: torch.Tensor,
    budgets: Sequence[int],
    distances: Sequence[Distance] = DISTANCES,
) -> dict[Distance, Separation]:
    """`separation` by several distances, which share most of the work."""
    visible = seen.sum(-1)
    size = contribution_score(alpha, value)
    # Infinite for the tokens that no set may have and no set leaves out.
    square = (alpha.square() * value.square().sum(-1).unsqueeze(-2)).masked_fill_(~seen, torch.inf)
    centre = torch.zeros(*alpha.shape[:-1], value.shape[-1], dtype=alpha.dtype, device=alpha.device)
    columns: dict[Distance, list[torch.Tensor]] = {distance: [] for distance in distances}
    for before, budget in zip((0, *budgets), budgets, strict=False):
        picked = order[..., :budget]
        centre += _sum_of(alpha, value, order[..., before:budget])
        length = torch.linalg.vector_norm(centre, dim=-1, keepdim=True)
        along = (centre @ value.transpose(-1, -2)).mul_(alpha)
        for distance in distances:
            comparison = compare(square, along, size, length, picked, distance)
            ends = torch.stack([comparison.outer, comparison.inner], -1)
            rho_max, rho_min = _distances(alpha, value, centre, ends, distance).unbind(-1)
            columns[distance].append(
                _column(budget, comparison, rho_min - rho_max).masked_fill(visible <= budget, torch.nan)
            )
    return {distance: Separation(*torch.stack(columns[distance], dim=-1)) for distance in distances}


def _sum_of(alpha: torch.Tensor, value: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """The summed contributions of the tokens `picked` `[..., Q, K]`, `[..., Q, D]`."""
    return (alpha.gather(-1, picked).unsqueeze(-2) @ _rows_of(value, picked)).squeeze(-2)


def _rows_of(value: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """The values `[..., Q, K, D]` of the tokens `picked` `[..., Q, K]`."""
    if value.dim() > 2:
        value = value.expand(*picked.shape[:-2], *value.shape[-2:])
    rows = value.reshape(-1, value.shape[-1])
    if value.dim() > 2:
        start = torch.arange(0, len(rows), value.shape[-2], device=value.device, dtype=torch.int64)
        picked = picked + start.view(*picked.shape[:-2], 1, 1)
    return rows.index_select(0, picked.flatten()).view(*picked.shape, value.shape[-1])


def _distances(
    alpha: torch.Tensor, value: torch.Tensor, centre: torch.Tensor, tokens: torch.Tensor, distance: Distance
) -> torch.Tensor:
    """The distances `[..., Q, K]` of a few tokens per query `[..., Q, K]` from the centre, straight from the
    definition."""
    offered = alpha.gather(-1, tokens).unsqueeze(-1) * _rows_of(value, tokens)
    centre = centre.unsqueeze(-2)
    far: torch.Tensor = torch.linalg.vector_norm(offered - centre, dim=-1)
    if distance == "cosine":
        lengths = torch.linalg.vector_norm(offered, dim=-1) * torch.linalg.vector_norm(centre, dim=-1)
        far = 1 - (offered * centre).sum(-1) / (lengths + COSINE_FLOOR)
    return far


def compare(
    square: torch.Tensor,
    along: torch.Tensor,
    size: torch.Tensor,
    length: torch.Tensor,
    picked: torch.Tensor,
    distance: Distance,
) -> Comparison:
    """Which unselected contributions lie as near to the centre as the selected ones: by a kernel where one takes them.

    Args:
        square: `[..., Q, L]` |y|^2, infinite where a token is not visible.
        along: `[..., Q, L]` <y, s>.
        size: `[..., Q, L]` |y|.
        length: `[..., Q, 1]` |s|.
        picked: `[..., Q, N]` the selected tokens.
        distance: "euclidean" or "cosine".
    """
    step = ROUNDING_STEPS * torch.finfo(square.dtype).eps
    if separates(square):
        return Comparison(*separate(square, along, size, length, picked, distance == "cosine", step, COSINE_FLOOR))
    return _compared(square, along, size, length, picked, distance, step)


def _compared(
    square: torch.Tensor,
    along: torch.Tensor,
    size: torch.Tensor,
    length: torch.Tensor,
    picked: torch.Tensor,
    distance: Distance,
    step: float,
) -> Comparison:
    """`compare` by its definition; `step` is the relative size of a rounding step."""
    if distance == "euclidean":
        near = torch.sub(square, along, alpha=2)
        selected = size.gather(-1, picked)
        slack: torch.Tensor | float = step * selected * (selected + 2 * length)
    else:
        near = (-along / (COSINE_FLOOR + size * length)).masked_fill_(square == torch.inf, torch.inf)
        slack = step
    chosen = near.gather(-1, picked)
    near.scatter_(-1, picked, torch.inf)
    outer = picked.gather(-1, chosen.argmax(-1, keepdim=True)).squeeze(-1)
    inner = near.argmin(-1)
    nearer = counts_within(near, chosen + slack)
    return Comparison(nearer.amax(-1), (nearer == 0).sum(-1), nearer.sum(-1), outer, inner)


def _column(budget: int, comparison: Comparison, margin: torch.Tensor) -> torch.Tensor:
    """The metrics `[5, ..., Q]` of one N."""
    tiny = torch.finfo(margin.dtype).tiny
    precision = budget / (budget + comparison.most.to(margin.dtype))
    recall = comparison.clear.to(margin.dtype) / budget
    f1 = 2 * precision * recall / (precision + recall)
    margin = torch.where(comparison.inversions == 0, margin.clamp_min(tiny), margin.clamp_max(0.0))
    return torch.stack([precision, recall, f1, margin, comparison.inversions.to(margin.dtype)])


def counts_within(rest: torch.Tensor, reach: torch.Tensor) -> torch.Tensor:
    """How many of `rest` `[..., L]` are at most each of `reach` `[..., N]`, int64 `[..., N]`; may sort `rest`."""
    if reach.shape[-1] <= MAX_UNSORTED:
        return torch.stack([(rest <= limit.unsqueeze(-1)).sum(-1) for limit in reach.unbind(-1)], -1)
    if rest.device.type == "cpu":
        rest.numpy().sort(axis=-1)  # several times as fast as torch
    else:
        rest = rest.sort(dim=-1).values
    return torch.searchsorted(rest, reach, right=True)

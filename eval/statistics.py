"""Rank correlation, and intervals by resampling what is independent."""

from __future__ import annotations

from collections.abc import Callable

import torch

RESAMPLES = 500


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks of `values` `[n]`, ties at their mean rank, fp64."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    mean: torch.Tensor = last - (counts.double() - 1) / 2
    return mean[place]


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation over the pairs that are finite; NaN where fewer than 3, or where one is constant."""
    known = torch.isfinite(first) & torch.isfinite(second)
    if int(known.sum()) < 3:
        return float("nan")
    pair = torch.stack([ranks(first[known]), ranks(second[known])])
    pair = pair - pair.mean(-1, keepdim=True)
    scale = pair.square().sum(-1).prod().sqrt()
    return float((pair[0] * pair[1]).sum() / scale) if float(scale) > 0 else float("nan")


def bootstrap(
    statistic: Callable[[torch.Tensor], float], clusters: int, seed: int, level: float = 0.95
) -> tuple[float, float] | None:
    """The percentile interval of `statistic` under resampling of clusters with replacement.

    Args:
        statistic: Of the places `[clusters]` of the resampled clusters.
        clusters: How many independent clusters there are.
        seed: Of the resampling.
        level: Of the interval.

    Returns:
        None where there are fewer than 3 clusters, or where the statistic is often not defined.
    """
    if clusters < 3:
        return None
    generator = torch.Generator().manual_seed(seed)
    places = torch.randint(clusters, (RESAMPLES, clusters), generator=generator, dtype=torch.int64, device="cpu")
    found = torch.tensor([statistic(row) for row in places], dtype=torch.float64, device="cpu")
    if torch.isnan(found).double().mean() > 0.1:
        return None
    edges = torch.nanquantile(
        found, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device="cpu")
    )
    return float(edges[0]), float(edges[1])

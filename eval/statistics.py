"""Rank correlation and agreement from scipy and scikit-learn, and intervals by resampling what is independent.

The resampling is written here because committed results hold its draws: `scipy.stats.bootstrap` draws others,
which move the ends of committed intervals by up to a sixth of their width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from geosparse.errors import GeosparseError

RESAMPLES = 500


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Spearman's rank correlation over the pairs that are finite; NaN where fewer than 3, or where one is constant."""
    from scipy.stats import spearmanr

    known = torch.isfinite(first) & torch.isfinite(second)
    pair = first[known].numpy(), second[known].numpy()
    if int(known.sum()) < 3 or any((part == part[0]).all() for part in pair):
        return float("nan")
    return float(spearmanr(*pair).statistic)


def cohen_kappa(first: torch.Tensor, second: torch.Tensor) -> float:
    """Agreement of two labelings beyond chance (Cohen 1960); 1 where both have one and the same label only.

    Args:
        first: Integer labels, any shape.
        second: Of the same shape, the same items.

    Raises:
        GeosparseError: The shapes differ or there is nothing to compare.
    """
    from sklearn.metrics import cohen_kappa_score

    if first.shape != second.shape or not first.numel():
        shapes = f"{list(first.shape)} and {list(second.shape)}"
        raise GeosparseError(f"Kappa compares two labelings of the same items, found the shapes {shapes}.")
    if torch.equal(first, second):
        # scikit-learn divides 0 by 0 where all labels are the same one.
        return 1.0
    return float(cohen_kappa_score(first.flatten().numpy(), second.flatten().numpy()))


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
    values_of_resamples = [statistic(row) for row in _resamples(clusters, RESAMPLES, seed)]
    values = torch.tensor(values_of_resamples, dtype=torch.float64, device="cpu")
    if torch.isnan(values).double().mean() > 0.1:
        return None
    low, high = torch.nanquantile(values, _edges(level))
    return float(low), float(high)


def bootstrap_interval(
    values: torch.Tensor, level: float = 0.95, seed: int = 0, resamples: int = 2000
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The percentile interval of the mean over documents, by resampling whole documents with replacement.

    Args:
        values: `[documents, ...]`, one row per window or document; NaNs are left out of every mean.
        level: Of the interval.
        seed: Of the resampling.
        resamples: How often to resample.

    Returns:
        Lower and upper ends `[...]` fp64; None where there are fewer than two documents.
    """
    if len(values) < 2:
        return None
    picks = _resamples(len(values), resamples, seed)
    counts = torch.zeros(picks.shape, dtype=torch.float64, device="cpu")
    counts.scatter_add_(1, picks, torch.ones_like(picks).double())
    flat = values.double().reshape(len(values), -1)
    known = torch.isfinite(flat)
    means = (counts @ flat.masked_fill(~known, 0.0)) / (counts @ known.double())
    low, high = means.nanquantile(_edges(level), dim=0)
    return low.view(values.shape[1:]), high.view(values.shape[1:])


def _resamples(items: int, resamples: int, seed: int) -> torch.Tensor:
    """Places `[resamples, items]`, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(items, (resamples, items), generator=generator, dtype=torch.int64, device="cpu")


def _edges(level: float) -> torch.Tensor:
    return torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64, device="cpu")

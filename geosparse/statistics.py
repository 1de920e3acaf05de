"""Intervals: Student's t for paired differences over few windows, the bootstrap over documents for anything else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def student_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for `freedom` >= 1 degrees of freedom: the finite series of Abramowitz and Stegun 26.7.3-4."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term = cosine if odd else 1.0
    series = 0.0
    for k in range(1 + odd, freedom, 2):
        series += term
        term *= cosine * cosine * k / (k + 1)
    inside = (2 / math.pi) * (theta + math.sin(theta) * series) if odd else math.sin(theta) * series
    return 0.5 + 0.5 * inside


def student_quantile(probability: float, freedom: int) -> float:
    """The t with `student_cdf(t) = probability`, for probabilities above one half, by bisection."""
    low, high = 0.0, 1.0
    while student_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_cdf(middle, freedom) < probability else (low, middle)
    return high


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The confidence interval of the mean of independent `values`; None where there are fewer than two."""
    if len(values) < 2:
        return None
    half = student_quantile(0.5 + level / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


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
    import torch

    if len(values) < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(values), (resamples, len(values)), generator=generator, dtype=torch.int64, device="cpu")
    counts = torch.zeros(resamples, len(values), dtype=torch.float64, device="cpu")
    counts.scatter_add_(1, picks, torch.ones_like(picks).double())
    flat = values.double().flatten(1)
    known = torch.isfinite(flat)
    means = (counts @ flat.masked_fill(~known, 0.0)) / (counts @ known.double())
    edges = torch.tensor([0.5 - level / 2, 0.5 + level / 2], dtype=torch.float64, device="cpu")
    low, high = means.nanquantile(edges, dim=0)
    return low.view(values.shape[1:]), high.view(values.shape[1:])

"""Paired statistics: the same samples under two variants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from geosparse.utils.intervals import mean_interval

from ..statistics import bootstrap_interval

RESAMPLES = 2000
MIN_BOOTSTRAP_SAMPLES = 10
"""Samples from which the bootstrap is used; below, its intervals are too narrow, and Student's t takes its place."""


@dataclass(frozen=True)
class Paired:
    """A variant against dense attention on the same samples.

    Attributes:
        difference: Mean over samples of variant minus dense.
        interval: Of it, 95 %, by resampling whole samples, or Student's t for few; None below two samples or where
            all differ by the same. Of accuracies, within -1 and 1.
        changed: Samples whose score changed.
        mcnemar: For accuracies, the exact two-sided probability of a split of the changed samples at least as uneven;
            1 where none changed; None for other metrics.
    """

    difference: float
    interval: tuple[float, float] | None
    changed: int
    mcnemar: float | None


def paired(dense: Sequence[float], variant: Sequence[float], kind: str) -> Paired | None:
    """Compare sample by sample; None where the metric has no value per sample."""
    if not dense or len(dense) != len(variant):
        return None
    differences = [b - a for a, b in zip(dense, variant, strict=True)]
    changed = sum(difference != 0 for difference in differences)
    won, lost = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    # Where all differ by the same there is no spread to take an interval from, which is not certainty.
    bounds = interval(differences) if len(set(differences)) > 1 else None
    if bounds and kind == "accuracy":
        bounds = max(-1.0, bounds[0]), min(1.0, bounds[1])
    return Paired(
        fmean(differences),
        bounds,
        changed,
        mcnemar(won, lost) if kind == "accuracy" else None,
    )


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of paired differences; None for fewer than two."""
    if len(differences) < MIN_BOOTSTRAP_SAMPLES:
        return mean_interval(differences)
    bounds = bootstrap_interval(
        torch.tensor(differences, dtype=torch.float64, device="cpu")[:, None], resamples=RESAMPLES
    )
    return None if bounds is None else (float(bounds[0]), float(bounds[1]))


def mcnemar(won: int, lost: int) -> float:
    """The exact McNemar test: two-sided binomial probability of `won` against `lost` under equal chances."""
    from scipy.stats import binomtest

    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def recovery(dense: float, variant: float, kind: str, higher_is_better: bool | None) -> float | None:
    """How much of the dense score is left, 1 for all: variant over dense, for perplexities dense over variant, for
    losses the ratio of the perplexities; None where that has no meaning."""
    if kind == "nll":
        return math.exp(min(dense - variant, 700.0))
    if kind == "perplexity":
        return dense / variant if variant > 0 else None
    return variant / dense if higher_is_better and dense > 0 else None

"""Student's t: the interval of a mean over few values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev


def student_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = `probability` for `freedom` >= 1 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(probability, freedom))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The confidence interval of the mean of independent `values`; None where there are fewer than two."""
    if len(values) < 2:
        return None
    half = student_quantile(0.5 + level / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half

"""The paper's assumptions A1 to A3, fitted per head from `Moments`, with the error of each fit.

Errors are given twice. MAE is the mean absolute residual in the units stated. R^2 = 1 - (sum of squared residuals) /
(sum of squares about the mean) over the same points; NaN where the points do not differ. Thresholds of `holds` are
the constants here: they say when a model of arXiv 2602.01893 (as restated in arXiv 2609.37879) describes a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ..errors import GeosparseError
from .moments import Moments, lag_bins

NORM_MAE = 0.2
"""A1 holds: mean absolute deviation of the norms from their level at most this share of it."""
SIMILARITY_R2, SIMILARITY_MAE, SIMILARITY_DROP = 0.8, 0.03, 0.02
"""A2 holds: the decay explains the curve, is off by at most so much (cosine), and falls by at least so much."""
PROFILE_R2, PROFILE_MAE, RECENCY_RISE = 0.8, 0.5, 0.5
"""A3 holds: the pieces explain the curve, are off by at most so many nats, and recency is so many above the plateau."""
DECAY_GRID = 240
LARGEST_DIMENSION = 1024.0
"""Directions that scatter less than in so many dimensions (cosines by 3 %) are taken to scatter so much."""
LEAST_BINS = 7


class NormFit(NamedTuple):
    """A1, each `[...]`: |v| = level, but compression * level at a sink.

    `spread` is the standard deviation of the norms over their level, sinks left out; `mae` in units of the level,
    residuals from the mean of their own window; `r2` over all tokens. `compression` is NaN without sinks; `sinks` per
    window; `first` the share of windows with a sink at position 0.
    """

    level: torch.Tensor
    spread: torch.Tensor
    compression: torch.Tensor
    sinks: torch.Tensor
    first: torch.Tensor
    mae: torch.Tensor
    r2: torch.Tensor


class SimilarityFit(NamedTuple):
    """A2, each `[...]`: mean cos(v_i, v_j) = floor + drop * exp(-|i - j| / length), sinks left out, |i - j| >= 1.

    `floor` may be negative, `drop` is not; `length` in tokens. `mae` and `r2` over logarithmic bins of the lag.
    `sink` is the mean cosine of a sink with the other tokens, NaN without sinks. `dimension` is the effective one:
    with c the mean cosine at a pair's lag, the D at which Gaussian directions scatter as much, mean cos^2 = mean c^2 +
    (1 + mean c^2) / D; the value dimension for isotropic directions, less where they share few axes.
    """

    floor: torch.Tensor
    drop: torch.Tensor
    length: torch.Tensor
    mae: torch.Tensor
    r2: torch.Tensor
    sink: torch.Tensor
    dimension: torch.Tensor


class ProfileFit(NamedTuple):
    """A3: mean logarithm of the weight over the uniform weight, by lag d, sinks apart; each `[...]` or `[..., 3]`.

    Three pieces, in order recency, oscillation, plateau, end at the lags `ends` (exclusive, tokens): lines in
    log2(1 + d) with `intercept` and `slope`, the plateau with slope 0. `spread` is the standard deviation of single
    weights about the mean of their lag within each piece, nats. `mass` is the mean attention of each piece,
    `sink_mass` that of the sinks, `sink_spread` its standard deviation over queries. `mae` (nats) and `r2` are of the
    pieces over logarithmic bins.
    """

    ends: torch.Tensor
    intercept: torch.Tensor
    slope: torch.Tensor
    spread: torch.Tensor
    mass: torch.Tensor
    sink_mass: torch.Tensor
    sink_spread: torch.Tensor
    mae: torch.Tensor
    r2: torch.Tensor


@dataclass(frozen=True, eq=False)
class Fits:
    """A1, A2 and A3 of the same heads."""

    norm: NormFit
    similarity: SimilarityFit
    profile: ProfileFit


def fit(moments: Moments) -> Fits:
    """All three fits of every head in `moments`."""
    return Fits(fit_norms(moments), fit_similarity(moments), fit_profile(moments))


def holds(fits: Fits) -> dict[str, torch.Tensor]:
    """Per head, whether each assumption holds by the thresholds of this module: `[...]` bool for A1, A2, A3.

    A1: `mae` <= NORM_MAE. A2: `r2` >= SIMILARITY_R2, `mae` <= SIMILARITY_MAE, `drop` >= SIMILARITY_DROP. A3: `r2` >=
    PROFILE_R2, `mae` <= PROFILE_MAE, recency at lag 0 >= plateau + RECENCY_RISE. A compressed sink is no condition of
    A1: a head without one has stable norms throughout.
    """
    norm, similarity, profile = fits.norm, fits.similarity, fits.profile
    rise = profile.intercept[..., 0] - profile.intercept[..., 2]
    return {
        "A1": norm.mae <= NORM_MAE,
        "A2": (similarity.r2 >= SIMILARITY_R2)
        & (similarity.mae <= SIMILARITY_MAE)
        & (similarity.drop >= SIMILARITY_DROP),
        "A3": (profile.r2 >= PROFILE_R2) & (profile.mae <= PROFILE_MAE) & (rise >= RECENCY_RISE),
    }


def met(fits: Fits) -> dict[str, int]:
    """How many heads meet each assumption, all three, and how many there are."""
    verdict = holds(fits)
    counts = {name: int(flags.sum()) for name, flags in verdict.items()}
    every = torch.stack(list(verdict.values())).all(0)
    return counts | {"all": int(every.sum()), "heads": every.numel()}


def fit_norms(moments: Moments) -> NormFit:
    """A1 by means: the level of ordinary tokens and that of the sinks."""
    count, first, second, away = moments.norm.unbind(-1)
    sink_count, sink_first, sink_second, sink_away = moments.sink_norm.unbind(-1)
    level, sink_level = first / count, sink_first / sink_count
    within = (second - first * level) + (sink_second - sink_first * sink_level).nan_to_num(0.0)
    everything = count + sink_count
    about = second + sink_second - (first + sink_first).square() / everything
    return NormFit(
        level=level,
        spread=(second / count - level.square()).clamp_min(0.0).sqrt() / level,
        compression=sink_level / level,
        sinks=moments.sinks / moments.windows,
        first=moments.first_sinks / moments.windows,
        mae=(away + sink_away) / everything / level,
        r2=_explained(within, about),
    )


def fit_similarity(moments: Moments) -> SimilarityFit:
    """A2 by least squares over logarithmic bins of the lag: linear in floor and drop, `length` from a fine grid."""
    edges = lag_bins(moments.length, first=1)
    curve = moments.cosine / moments.pairs.clamp_min(1.0)
    centre = (edges[:-1] + edges[1:] - 1).double() / 2
    lengths = torch.logspace(
        math.log10(0.5), math.log10(4 * moments.length), DECAY_GRID, dtype=torch.float32, device="cpu"
    ).double()
    decay = torch.exp(-centre / lengths[:, None])
    shape = decay - decay.mean(-1, keepdim=True)
    about = curve - curve.mean(-1, keepdim=True)
    drop = ((about @ shape.T) / shape.square().sum(-1).clamp_min(1e-12)).clamp_min(0.0)
    error = about.square().sum(-1, keepdim=True) - 2 * drop * (about @ shape.T) + drop.square() * shape.square().sum(-1)
    best = error.argmin(-1, keepdim=True)
    drop, length = drop.gather(-1, best).squeeze(-1), lengths[best.squeeze(-1)]
    floor = curve.mean(-1) - drop * decay.mean(-1)[best.squeeze(-1)]
    residual = curve - floor.unsqueeze(-1) - drop.unsqueeze(-1) * decay[best.squeeze(-1)]
    sink_pairs, sink_cosine = moments.sink_cosine.unbind(-1)
    all_pairs, square = moments.square.unbind(-1)
    systematic = (curve.square() * moments.pairs).sum(-1) / moments.pairs.sum(-1)
    scatter = (square / all_pairs - systematic).clamp_min(1e-12)
    return SimilarityFit(
        floor=floor,
        drop=drop,
        length=length,
        mae=residual.abs().mean(-1),
        r2=_explained(residual.square().sum(-1), about.square().sum(-1)),
        sink=sink_cosine / sink_pairs,
        dimension=((1 + systematic) / scatter).clamp(1.0, LARGEST_DIMENSION),
    )


def fit_profile(moments: Moments) -> ProfileFit:
    """A3 by exhaustive search of the two breakpoints over logarithmic bins, each piece by least squares."""
    edges = lag_bins(moments.length, first=0)
    if len(edges) <= LEAST_BINS:
        raise GeosparseError(f"A profile over {moments.length} tokens has no three pieces; fit 16 or more.")
    readers = moments.readers
    # A lag beyond the sliding window has no reader: its bin takes no part.
    weight = (readers > 0).double()
    curve = moments.attention[..., 1, :] / readers.clamp_min(1.0)
    positions = torch.log2(1 + (edges[:-1] + edges[1:] - 1) / 2)
    lines = _Lines(curve, positions, weight)
    used = max(int(weight.flatten(0, -2).any(0).sum()), LEAST_BINS)
    splits = [(a, b) for a in range(2, used - 4) for b in range(a + 2, used - 2)]
    errors = torch.stack(
        [lines.error(0, a) + lines.error(a, b) + lines.error(b, len(positions), flat=True) for a, b in splits], -1
    )
    split = torch.tensor(splits, dtype=torch.int64, device="cpu")[errors.argmin(-1)]
    ends = torch.cat([split, torch.full_like(split[..., :1], len(positions))], -1)
    starts = torch.cat([torch.zeros_like(split[..., :1]), split], -1)
    intercept, slope = lines.at(starts, ends)
    piece = (torch.arange(len(positions), dtype=torch.int64, device="cpu") >= split.unsqueeze(-1)).sum(-2)
    fitted = intercept.gather(-1, piece) + slope.gather(-1, piece) * positions
    residual = (curve - fitted) * weight
    bins = weight.sum(-1)
    about = (curve - ((curve * weight).sum(-1) / bins).unsqueeze(-1)) * weight
    queries, mass, square = moments.sink_mass.unbind(-1)
    members = torch.nn.functional.one_hot(piece, 3).double()
    weights, logs, squares = moments.attention.unbind(-2)
    scatter = squares - logs.square() / readers.clamp_min(1.0)
    pieced = [(part.unsqueeze(-1) * members).sum(-2) for part in (scatter, readers)]
    by_piece = (weights.unsqueeze(-1) * members).sum(-2)
    return ProfileFit(
        ends=edges[ends],
        intercept=intercept,
        slope=slope,
        spread=(pieced[0] / pieced[1].clamp_min(1.0)).clamp_min(0.0).sqrt(),
        mass=by_piece / queries.unsqueeze(-1),
        sink_mass=mass / queries,
        sink_spread=(square / queries - (mass / queries).square()).clamp_min(0.0).sqrt(),
        mae=residual.abs().sum(-1) / bins,
        r2=_explained(residual.square().sum(-1), about.square().sum(-1)),
    )


class _Lines:
    """Least-squares lines through any run of bins, from prefix sums."""

    def __init__(self, curve: torch.Tensor, positions: torch.Tensor, weight: torch.Tensor) -> None:
        parts = (weight, weight * positions, weight * positions.square(), weight * curve, weight * curve * positions)
        self.sums = torch.stack([*parts, weight * curve.square()]).cumsum(-1)
        self.sums = torch.nn.functional.pad(self.sums, (1, 0))

    def error(self, start: int, end: int, flat: bool = False) -> torch.Tensor:
        """Squared residuals of the line through the bins `start` to `end` - 1, of the mean where `flat`."""
        n, x, xx, y, xy, yy = self.sums[..., end] - self.sums[..., start]
        n = n.clamp_min(1e-12)
        error: torch.Tensor = yy - y.square() / n
        if not flat:
            spread = (xx - x.square() / n).clamp_min(1e-12)
            error = error - (xy - x * y / n).square() / spread
        return error

    def at(self, starts: torch.Tensor, ends: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Intercept and slope `[..., 3]` of three pieces from bin `starts` to `ends`; the last is flat."""
        shape = (len(self.sums), *starts.shape)
        last, first = (self.sums.gather(-1, columns.expand(shape)) for columns in (ends, starts))
        n, x, xx, y, xy, _ = last - first
        n = n.clamp_min(1e-12)
        slope = (xy - x * y / n) / (xx - x.square() / n).clamp_min(1e-12)
        slope = slope * torch.tensor([1.0, 1.0, 0.0], dtype=slope.dtype, device=slope.device)
        return (y - slope * x) / n, slope


def _explained(residual: torch.Tensor, about: torch.Tensor) -> torch.Tensor:
    """R^2 from the squared residuals and the squares about the mean."""
    return torch.where(about > 1e-12, 1 - residual / about.clamp_min(1e-12), torch.nan)

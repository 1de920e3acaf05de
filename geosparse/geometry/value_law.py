"""The law of values and attention rows that A1 to A3 describe, fitted and sampled: "The law" in geometry/README.md."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .fits import Fits, ProfileFit
from .separation import selection_order, separation

DRAWS = 39
"""Simulated windows: the fewest that allow an envelope at a level of 95 %."""
FILTER_TOKENS = 64


class Law(NamedTuple):
    """A1 and A2 as one law of the values: in each of `dimension` coordinates an independent Gaussian field.

    |v_i|^2 has the mean `level`^2, (`compression` * `level`)^2 at a sink; the correlation of two tokens at a lag d is
    `floor` + `drop` * exp(-d / `length`), of a sink and another token `sink`, of two sinks 1.
    """

    level: float
    compression: float
    floor: float
    drop: float
    length: float
    sink: float
    dimension: int

    @classmethod
    def of(cls, fits: Fits, head: tuple[int, ...]) -> Law:
        """The law of the head at `head` (layer, head), cut to what is a covariance: 0 <= floor, floor + drop <= 1,
        sink^2 <= floor; without sinks the compression is 1 and counts for nothing.
        """
        norm, similarity = fits.norm, fits.similarity
        floor = min(max(float(similarity.floor[head]), 0.0), 1.0)
        sink = 0.0 if math.isnan(float(similarity.sink[head])) else float(similarity.sink[head])
        compression = float(norm.compression[head])
        return cls(
            level=float(norm.level[head]),
            compression=1.0 if math.isnan(compression) else compression,
            floor=floor,
            drop=min(float(similarity.drop[head]), 1.0 - floor),
            length=float(similarity.length[head]),
            sink=math.copysign(min(abs(sink), math.sqrt(floor)), sink),
            dimension=max(1, round(float(similarity.dimension[head]))),
        )


def covariance(law: Law, first: torch.Tensor, second: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """E <v_i, v_j> for the tokens `first` `[n]` and `second` `[m]`, `[n, m]` fp64; `sinks` `[L]` bool."""
    lag = (first[:, None] - second).abs().double()
    same = law.floor + law.drop * torch.exp(-lag / law.length)
    sunk = torch.stack([sinks[first][:, None].expand(lag.shape), sinks[second].expand(lag.shape)]).sum(0)
    matrix = torch.where(sunk == 1, law.sink, torch.where((sunk == 2) | (lag == 0), 1.0, same))
    norm = law.level * torch.where(sinks, law.compression, 1.0).double()
    return matrix * norm[first][:, None] * norm[second]


def covariance_diagonal(law: Law, sinks: torch.Tensor) -> torch.Tensor:
    """E |v_i|^2, `[L]` fp64."""
    return (law.level * torch.where(sinks, law.compression, 1.0).double()).square()


def simulate(
    law: Law,
    alpha: torch.Tensor,
    seen: torch.Tensor,
    sinks: torch.Tensor,
    budgets: Sequence[int],
    generator: torch.Generator,
    draws: int = DRAWS,
) -> torch.Tensor:
    """P, R and F in `draws` independent windows whose values follow the law, `[draws, Q, G, 3]` fp32.

    The queries of a window share its values, so that a mean over queries is one outcome of the head.

    Args:
        law: A1 and A2 of the head.
        alpha: `[Q, L]` attention rows, the same in every draw, or `[draws, Q, L]`.
        seen: `[Q, L]` bool.
        sinks: `[L]` bool.
        budgets: G values of N below L.
        generator: Where the randomness comes from.
        draws: How many.
    """
    value = sample_values(law, sinks, draws, generator)
    rows = alpha.float().expand(draws, *seen.shape)
    visible = seen.expand(rows.shape)
    metrics = separation(rows, value, selection_order(rows, visible), visible, budgets)
    return torch.stack([metrics.precision, metrics.recall, metrics.f1], -1)


def sample_values(law: Law, sinks: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    """Values `[draws, L, D]` fp32 whose covariance is `covariance`: common part, autoregression, own part."""
    length, dimension = len(sinks), law.dimension
    common, apart = torch.randn(2, draws, 1, dimension, generator=generator, dtype=torch.float32, device="cpu")
    rest = max(0.0, 1 - law.floor - law.drop)
    value = math.sqrt(rest) * torch.randn(
        draws, length, dimension, generator=generator, dtype=torch.float32, device="cpu"
    )
    value += math.sqrt(law.floor) * common
    if law.drop:
        value += math.sqrt(law.drop) * _autoregression(law.length, draws, length, dimension, generator)
    share = law.sink / math.sqrt(law.floor) if law.floor else 0.0
    sink = share * common + math.sqrt(max(0.0, 1 - share * share)) * apart
    value = torch.where(sinks[:, None], law.compression * sink, value)
    return value * (law.level / math.sqrt(dimension))


def _autoregression(decay: float, draws: int, length: int, dimension: int, generator: torch.Generator) -> torch.Tensor:
    """A stationary Gaussian sequence `[draws, L, D]` of variance 1 and correlation exp(-lag / decay), by blocks."""
    step = math.exp(-1 / decay)
    positions = torch.arange(FILTER_TOKENS, dtype=torch.float64, device="cpu")
    powers = (positions[:, None] - positions).clamp_min(0)
    carry = (step ** (positions + 1)).float()[:, None]
    mix = (math.sqrt(1 - step * step) * step**powers).tril().float()
    state = torch.randn(draws, 1, dimension, generator=generator, dtype=torch.float32, device="cpu")
    blocks = []
    for _ in range(0, length, FILTER_TOKENS):
        block = (
            mix @ torch.randn(draws, FILTER_TOKENS, dimension, generator=generator, dtype=torch.float32, device="cpu")
            + carry * state
        )
        state = block[:, -1:]
        blocks.append(block)
    return torch.cat(blocks, 1)[:, :length]


def sample_rows(
    profile: ProfileFit, head: tuple[int, ...], sinks: torch.Tensor, draws: int, generator: torch.Generator
) -> torch.Tensor:
    """A3 as a law of attention rows `[draws, L]` fp64 of the last query of a window.

    Away from the sinks the logarithm of a weight is normal about the fitted piece, with the spread of that piece; the
    row is scaled to the mass that the sinks leave, which is normal too (cut to [0, 1]) and shared evenly among them.
    """
    length = len(sinks)
    lag = torch.arange(length - 1, -1, -1, dtype=torch.float64, device="cpu")
    piece = (lag.unsqueeze(-1) >= profile.ends[head][:2]).sum(-1)
    mean = profile.intercept[head][piece] + profile.slope[head][piece] * torch.log2(1 + lag)
    noise = torch.randn(draws, length, generator=generator, dtype=torch.float64, device="cpu")
    logits = mean + profile.spread[head][piece] * noise
    free = logits.masked_fill(sinks, -torch.inf).softmax(-1)
    spread = torch.randn(draws, 1, generator=generator, dtype=torch.float64, device="cpu") * profile.sink_spread[head]
    mass = (profile.sink_mass[head] + spread).clamp(0.0, 1.0) if bool(sinks.any()) else torch.zeros_like(spread)
    return free * (1 - mass) + mass * sinks.double() / sinks.sum().clamp_min(1)

"""Bounds on precision, recall and F of one selection from the fitted assumptions: the theorems of GEOMETRY.md.

Under the law there, whether token j is nearer to the centre than the selected token i has an exact probability,
Student's t with D degrees of freedom at the normalised margin r_ij. Three envelopes follow: of the means
(`mean_envelope`), of a single query at a level (`level_envelope`, by union and Markov: certain but wide), and of a
single query by order statistics of simulated ones (`simulated_envelope`, as narrow as the law allows).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .errors import GeosparseError
from .fits import Fits, ProfileFit
from .geometry import selection_order, separation

LEVEL = 0.95
DRAWS = 39
"""Simulated queries: the fewest that allow an envelope at `LEVEL`."""
BLOCK = 64
METRICS = ("precision", "recall", "f1")


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
    def of(cls, fits: Fits, place: tuple[int, ...]) -> Law:
        """The law of the head at `place` (layer, head), cut to what is a covariance: 0 <= floor, floor + drop <= 1,
        sink^2 <= floor; without sinks the compression is 1 and counts for nothing.
        """
        norm, similarity = fits.norm, fits.similarity
        floor = min(max(float(similarity.floor[place]), 0.0), 1.0)
        sink = 0.0 if math.isnan(float(similarity.sink[place])) else float(similarity.sink[place])
        compression = float(norm.compression[place])
        return cls(
            level=float(norm.level[place]),
            compression=1.0 if math.isnan(compression) else compression,
            floor=floor,
            drop=min(float(similarity.drop[place]), 1.0 - floor),
            length=float(similarity.length[place]),
            sink=math.copysign(min(abs(sink), math.sqrt(floor)), sink),
            dimension=max(1, round(float(similarity.dimension[place]))),
        )


class Envelope(NamedTuple):
    """Lower and upper bounds, each `[..., 3]` in the order of `METRICS`."""

    lower: torch.Tensor
    upper: torch.Tensor


class Inversions(NamedTuple):
    """Every pair of a selected and an unselected token, `[N, L - N]` fp64, both in the order of selection.

    `margin` is r_ij, the correlation behind the pair, positive where the selected token is nearer in the mean;
    `probability` that of an inversion, D_j <= D_i.
    """

    margin: torch.Tensor
    probability: torch.Tensor


def covariance(law: Law, first: torch.Tensor, second: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """E <v_i, v_j> for the tokens `first` `[n]` and `second` `[m]`, `[n, m]` fp64; `sinks` `[L]` bool."""
    lag = (first[:, None] - second).abs().double()
    same = law.floor + law.drop * torch.exp(-lag / law.length)
    sunk = torch.stack([sinks[first][:, None].expand(lag.shape), sinks[second].expand(lag.shape)]).sum(0)
    matrix = torch.where(sunk == 1, law.sink, torch.where((sunk == 2) | (lag == 0), 1.0, same))
    norm = law.level * torch.where(sinks, law.compression, 1.0).double()
    return matrix * norm[first][:, None] * norm[second]


def inversions(law: Law, alpha: torch.Tensor, sinks: torch.Tensor, budget: int) -> Inversions:
    """Theorem 1: the probability of each geometric inversion, given the attention row.

    Args:
        law: A1 and A2 of the head.
        alpha: `[L]` weights of the tokens that the query sees, in their order, all > 0.
        sinks: `[L]` bool.
        budget: N, from 1 to L - 1.

    Raises:
        GeosparseError: The budget leaves nothing out.
    """
    visible = alpha.shape[-1]
    if not 1 <= budget < visible:
        raise GeosparseError(f"An envelope needs 1 <= N < {visible} visible tokens, found N = {budget}.")
    alpha = alpha.double()
    order = selection_order(alpha, torch.ones_like(alpha, dtype=torch.bool))
    chosen = order[:budget]
    with_chosen = covariance(law, chosen, order, sinks) * alpha[chosen][:, None] * alpha[order]
    own = covariance_diagonal(law, sinks)[order] * alpha[order].square()
    along = with_chosen.sum(0)
    centre = along[:budget].sum()
    score = own - 2 * along
    joint = with_chosen[:, budget:]
    squares = own[:budget, None] + own[budget:]
    difference = (squares - 2 * joint).clamp_min(0.0)
    outer = 4 * centre + squares + 2 * joint - 4 * (along[:budget, None] + along[budget:])
    scale = (difference * outer.clamp_min(0.0)).sqrt()
    margin = ((score[budget:] - score[:budget, None]) / scale.clamp_min(1e-300)).clamp(-1.0, 1.0)
    return Inversions(margin, student_tail(margin, law.dimension))


def covariance_diagonal(law: Law, sinks: torch.Tensor) -> torch.Tensor:
    """E |v_i|^2, `[L]` fp64."""
    return (law.level * torch.where(sinks, law.compression, 1.0).double()).square()


def student_tail(margin: torch.Tensor, dimension: int) -> torch.Tensor:
    """P(T <= -sqrt(D) r / sqrt(1 - r^2)) for Student's t with D degrees of freedom, at r = `margin` in [-1, 1].

    The finite series of Abramowitz and Stegun 26.7.3-4, with sin(theta) = r. At most (1 - r^2)^(D / 2) for r >= 0.
    """
    cosine = (1 - margin.square()).clamp_min(0.0)
    odd = dimension % 2
    term = cosine.sqrt() if odd else torch.ones_like(margin)
    series = torch.zeros_like(margin)
    for k in range(1 + odd, dimension, 2):
        series += term
        term = term * cosine * (k / (k + 1))
    inside = margin * series
    if odd:
        inside = (2 / math.pi) * (torch.asin(margin) + inside)
    tail: torch.Tensor = (0.5 - 0.5 * inside).clamp(0.0, 1.0)
    return tail


def mean_envelope(pairs: Inversions) -> Envelope:
    """Theorem 2: bounds on E[P], E[R], E[F] of one query; the expectation is over values of the law."""
    budget, rest = pairs.probability.shape
    any_chosen, any_rest = _at_most(pairs)
    least_chosen, least_rest = pairs.probability.amax(0).sum(), pairs.probability.amax(1).sum()
    precision = torch.stack([budget / (budget + any_chosen.sum()), 1 - least_chosen / (budget + rest)])
    recall = torch.stack([1 - any_rest.sum() / budget, 1 - least_rest / budget])
    low = (precision[0] + recall[0] - 1).clamp_min(0.0)
    return Envelope(
        torch.stack([precision[0], recall[0], low]),
        torch.stack([precision[1], recall[1], _harmonic(precision[1], recall[1])]),
    )


def level_envelope(pairs: Inversions, level: float = LEVEL) -> Envelope:
    """Theorem 3: P, R and F of one query lie within, all at once, with probability at least `level`."""
    _check_level(level)
    budget, rest = pairs.probability.shape
    delta = (1 - level) / 4
    any_chosen, any_rest = _at_most(pairs)
    sure_chosen, sure_rest = pairs.probability.amax(0), pairs.probability.amax(1)

    def most(probability: torch.Tensor) -> torch.Tensor:
        return (probability / delta).clamp_max(1.0).sum().add(1e-9).floor()

    intruders = torch.stack([most(any_chosen), rest - most(1 - sure_chosen)])
    lost = torch.stack([most(any_rest), budget - most(1 - sure_rest)])
    precision, recall = budget / (budget + intruders), 1 - lost / budget
    bounds = torch.stack([precision, recall, _harmonic(precision, recall)], -1)
    return Envelope(bounds[0], bounds[1])


def simulated_envelope(outcomes: torch.Tensor, level: float = LEVEL) -> Envelope:
    """Theorem 4: order statistics of simulated outcomes that bracket another one with probability at least `level`.

    Args:
        outcomes: `[M, ...]` of `simulate`, M >= 2 / (1 - level) - 1.
        level: For each metric on its own.
    """
    _check_level(level)
    draws = outcomes.shape[0]
    place = math.floor((1 - level) / 2 * (draws + 1) + 1e-9)
    if place < 1:
        least = math.ceil(2 / (1 - level) - 1 - 1e-9)
        raise GeosparseError(f"A level of {level} needs {least} simulated queries or more, found {draws}.")
    ordered = outcomes.sort(dim=0).values
    return Envelope(ordered[place - 1], ordered[draws - place])


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
    found = separation(rows, value, selection_order(rows, visible), visible, budgets)
    return torch.stack([found.precision, found.recall, found.f1], -1)


def sample_values(law: Law, sinks: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    """Values `[draws, L, D]` fp32 whose covariance is `covariance`: common part, autoregression, own part."""
    length, dimension = len(sinks), law.dimension
    common, apart = torch.randn(2, draws, 1, dimension, generator=generator)
    rest = max(0.0, 1 - law.floor - law.drop)
    value = math.sqrt(rest) * torch.randn(draws, length, dimension, generator=generator)
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
    place = torch.arange(BLOCK, dtype=torch.float64)
    powers = (place[:, None] - place).clamp_min(0)
    carry = (step ** (place + 1)).float()[:, None]
    mix = (math.sqrt(1 - step * step) * step**powers).tril().float()
    state = torch.randn(draws, 1, dimension, generator=generator)
    blocks = []
    for _ in range(0, length, BLOCK):
        block = mix @ torch.randn(draws, BLOCK, dimension, generator=generator) + carry * state
        state = block[:, -1:]
        blocks.append(block)
    return torch.cat(blocks, 1)[:, :length]


def sample_rows(
    profile: ProfileFit, place: tuple[int, ...], sinks: torch.Tensor, draws: int, generator: torch.Generator
) -> torch.Tensor:
    """A3 as a law of attention rows `[draws, L]` fp64 of the last query of a window.

    Away from the sinks the logarithm of a weight is normal about the fitted piece, with the spread of that piece; the
    row is scaled to the mass that the sinks leave, which is normal too (cut to [0, 1]) and shared evenly among them.
    """
    length = len(sinks)
    lag = torch.arange(length - 1, -1, -1, dtype=torch.float64)
    piece = (lag.unsqueeze(-1) >= profile.ends[place][:2]).sum(-1)
    mean = profile.intercept[place][piece] + profile.slope[place][piece] * torch.log2(1 + lag)
    noise = torch.randn(draws, length, generator=generator, dtype=torch.float64)
    logits = mean + profile.spread[place][piece] * noise
    free = logits.masked_fill(sinks, -torch.inf).softmax(-1)
    spread = torch.randn(draws, 1, generator=generator, dtype=torch.float64) * profile.sink_spread[place]
    mass = (profile.sink_mass[place] + spread).clamp(0.0, 1.0) if bool(sinks.any()) else torch.zeros_like(spread)
    return free * (1 - mass) + mass * sinks.double() / sinks.sum().clamp_min(1)


def _at_most(pairs: Inversions) -> tuple[torch.Tensor, torch.Tensor]:
    """Union bounds: that a token outside is nearer than some selected one, and that a selected one is not nearest."""
    return pairs.probability.sum(0).clamp_max(1.0), pairs.probability.sum(1).clamp_max(1.0)


def _harmonic(precision: torch.Tensor, recall: torch.Tensor) -> torch.Tensor:
    return 2 * precision * recall / (precision + recall).clamp_min(1e-300)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise GeosparseError(f"The level of an envelope lies between 0 and 1, found {level}.")

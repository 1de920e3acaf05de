"""Bounds on precision, recall and F of one selection from the fitted assumptions: the theorems of geometry/README.md.

Under the law there, whether token j is nearer to the centre than the selected token i has an exact probability,
Student's t with D degrees of freedom at the normalised margin r_ij. Three envelopes follow: of the means
(`mean_envelope`), of a single query at a level (`level_envelope`, by union and Markov: certain but wide), and of a
single query by order statistics of simulated ones (`simulated_envelope`, as narrow as the law allows).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..errors import GeosparseError
from .separation import selection_order
from .value_law import Law, covariance, covariance_diagonal

LEVEL = 0.95
METRICS = ("precision", "recall", "f1")


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
    variance = covariance_diagonal(law, sinks)[order] * alpha[order].square()
    along = with_chosen.sum(0)
    centre = along[:budget].sum()
    score = variance - 2 * along
    joint = with_chosen[:, budget:]
    squares = variance[:budget, None] + variance[budget:]
    difference = (squares - 2 * joint).clamp_min(0.0)
    outer = 4 * centre + squares + 2 * joint - 4 * (along[:budget, None] + along[budget:])
    scale = (difference * outer.clamp_min(0.0)).sqrt()
    margin = ((score[budget:] - score[:budget, None]) / scale.clamp_min(1e-300)).clamp(-1.0, 1.0)
    return Inversions(margin, student_tail(margin, law.dimension))


def student_tail(margin: torch.Tensor, dimension: int) -> torch.Tensor:
    """P(T <= -sqrt(D) r / sqrt(1 - r^2)) for Student's t with D degrees of freedom, at r = `margin` in [-1, 1].

    At most (1 - r^2)^(D / 2) for r >= 0.
    """
    from scipy.special import stdtr

    quantile = -math.sqrt(dimension) * margin / (1 - margin.square()).clamp_min(0.0).sqrt()
    tail: torch.Tensor = torch.as_tensor(
        stdtr(dimension, quantile.numpy(force=True)), dtype=margin.dtype, device=margin.device
    )
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
    rank = math.floor((1 - level) / 2 * (draws + 1) + 1e-9)
    if rank < 1:
        least = math.ceil(2 / (1 - level) - 1 - 1e-9)
        raise GeosparseError(f"A level of {level} needs {least} simulated queries or more, found {draws}.")
    ordered = outcomes.sort(dim=0).values
    return Envelope(ordered[rank - 1], ordered[draws - rank])


def _at_most(pairs: Inversions) -> tuple[torch.Tensor, torch.Tensor]:
    """Union bounds: that a token outside is nearer than some selected one, and that a selected one is not nearest."""
    return pairs.probability.sum(0).clamp_max(1.0), pairs.probability.sum(1).clamp_max(1.0)


def _harmonic(precision: torch.Tensor, recall: torch.Tensor) -> torch.Tensor:
    return 2 * precision * recall / (precision + recall).clamp_min(1e-300)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise GeosparseError(f"The level of an envelope lies between 0 and 1, found {level}.")

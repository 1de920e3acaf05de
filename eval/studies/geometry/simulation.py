"""How often the envelopes hold where the assumptions hold exactly, and where one of them is broken."""

from __future__ import annotations

from typing import Any

import torch

from geosparse.geometry.envelopes import (
    LEVEL,
    METRICS,
    Envelope,
    inversions,
    level_envelope,
    mean_envelope,
    simulated_envelope,
)
from geosparse.geometry.separation import selection_order, separation
from geosparse.geometry.value_law import Law, sample_values, simulate

LENGTH = 512
BUDGETS = (4, 16, 64)
DRAWS = 20
TRIALS = 30
CASES = ("exact", "A1 broken", "A2 broken", "A3 broken")
NORM_SPREAD = 0.5
TOPICS = 8


def synthetic_coverage(seed: int, dimensions: tuple[int, ...] = (64, 256), trials: int = TRIALS) -> dict[str, Any]:
    """Coverage of fresh outcomes and mean width of each envelope, per case and dimension.

    Laws and rows vary over the trials: floor 0 to 0.4, drop 0 to 0.5, length 1 to 8, spread of the log-weights 0.5 to
    3. A1 broken: norms are log-normal with spread `NORM_SPREAD`. A2 broken: directions follow `TOPICS` topics, not the
    lag. A3 broken: the envelope is given a row of the same law as the true one, but not the true one. The bounds on
    means are held against the mean of the fresh outcomes, give or take three standard errors.
    """
    table: dict[str, Any] = {}
    for dimension in dimensions:
        for case in CASES:
            generator = torch.Generator().manual_seed(seed)
            rows = [_trial(case, dimension, generator) for _ in range(trials)]
            table[f"{case}, D = {dimension}"] = {
                kind: {
                    "coverage": dict(zip(METRICS, torch.stack([r[kind][0] for r in rows]).mean((0, 1)), strict=True)),
                    "mean_width": dict(zip(METRICS, torch.stack([r[kind][1] for r in rows]).mean((0, 1)), strict=True)),
                }
                for kind in rows[0]
            }
    return {"length": LENGTH, "budgets": BUDGETS, "level": LEVEL, "trials": trials, "cases": table}


def _trial(case: str, dimension: int, generator: torch.Generator) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """One law, one row, one set of envelopes: coverage and width `[G, 3]` of each kind."""
    draw = torch.rand(5, generator=generator, dtype=torch.float32, device="cpu").tolist()
    floor = 0.4 * draw[0]
    sink = 0.5 * floor**0.5 * (2 * draw[1] - 1)
    law = Law(1.0, 0.2, floor, 0.5 * draw[2], 1 + 7 * draw[3], sink, dimension)
    sinks = torch.arange(LENGTH, dtype=torch.int64, device="cpu") == 0
    spread = 0.5 + 2.5 * draw[4]
    alpha, given = _row(spread, generator), _row(spread, generator)
    given = given if case == "A3 broken" else alpha
    seen = torch.ones(1, LENGTH, dtype=torch.bool, device="cpu")
    value = _break(case, sample_values(law, sinks, DRAWS, generator), sinks, generator)
    order = selection_order(alpha, seen[0]).expand(DRAWS, 1, LENGTH)
    metrics = separation(alpha.float().expand(DRAWS, 1, LENGTH), value, order, seen.expand(DRAWS, 1, LENGTH), BUDGETS)
    outcome = torch.stack([metrics.precision, metrics.recall, metrics.f1], -1)[:, 0]
    pairs = [inversions(law, given, sinks, budget) for budget in BUDGETS]
    simulated = simulate(law, given[None], seen, sinks, BUDGETS, generator)[:, 0]
    # A hundredth: outcomes that happen to be all alike say little about their spread.
    slack = 3 * (outcome.std(0) + 0.01) / DRAWS**0.5
    return {
        "level": _held(_stack([level_envelope(pair) for pair in pairs]), outcome),
        "simulated": _held(simulated_envelope(simulated), outcome),
        "mean": _held(_stack([mean_envelope(pair) for pair in pairs]), outcome.mean(0, keepdim=True), slack),
    }


def _row(spread: float, generator: torch.Generator) -> torch.Tensor:
    """A sink of 0.3, a plateau, and two more nats over the last 16 tokens, `[L]` fp64."""
    lag = torch.arange(LENGTH - 1, -1, -1, dtype=torch.int64, device="cpu")
    logits = 2.0 * (lag < 16) + spread * torch.randn(LENGTH, generator=generator, dtype=torch.float64, device="cpu")
    free = logits.masked_fill(torch.arange(LENGTH, dtype=torch.int64, device="cpu") == 0, -torch.inf).softmax(-1)
    return 0.7 * free + 0.3 * (torch.arange(LENGTH, dtype=torch.int64, device="cpu") == 0)


def _break(case: str, value: torch.Tensor, sinks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    draws, length, dimension = value.shape
    if case == "A1 broken":
        return (
            value
            * (
                NORM_SPREAD * torch.randn(draws, length, 1, generator=generator, dtype=torch.float32, device="cpu")
            ).exp()
        )
    if case == "A2 broken":
        topics = (
            torch.randn(draws, TOPICS, dimension, generator=generator, dtype=torch.float32, device="cpu")
            / dimension**0.5
        )
        topic = torch.randint(TOPICS, (draws, length, 1), generator=generator, dtype=torch.int64, device="cpu").expand(
            -1, -1, dimension
        )
        return torch.where(sinks[:, None], value, topics.gather(1, topic))
    return value


def _stack(envelopes: list[Envelope]) -> Envelope:
    return Envelope(torch.stack([e.lower for e in envelopes]), torch.stack([e.upper for e in envelopes]))


def _held(
    envelope: Envelope, outcome: torch.Tensor, slack: torch.Tensor | float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """The share of `outcome` `[n, G, 3]` within, give or take `slack`, and the width."""
    inside = (outcome >= envelope.lower - slack) & (outcome <= envelope.upper + slack)
    return inside.double().mean(0), (envelope.upper - envelope.lower).double()

"""Policies: each turns the measured Choices and a number of tokens into budgets per head. One file per policy."""

from __future__ import annotations

from typing import Protocol

import torch

from ..planning.choices import Choices
from .alone import alone
from .entropy import entropy
from .fisher import fisher
from .mass import mass
from .output_error import output_error
from .permuted import permuted
from .random import random
from .regime import regime
from .separability import separability
from .uniform import uniform


class Policy(Protocol):
    """Budgets `[layers, Hq]` int64 summing to `total` tokens, each from 1 to the profile's length; with `share_kv`
    equal within each KV group, the sum rounded down."""

    def __call__(self, choices: Choices, total: int, seed: int) -> torch.Tensor:
        """`total`: tokens to hand out over all heads, at least one each; `seed`: used by the controls only."""


POLICIES: dict[str, Policy] = {
    "fisher": fisher,
    "alone": alone,
    "output_error": output_error,
    "mass": mass,
    "separability": separability,
    "entropy": entropy,
    "regime": regime,
    "uniform": uniform,
    "permuted": permuted,
    "random": random,
}

SHAREABLE = ("fisher", "alone", "output_error", "mass", "uniform")
"""Those that can give the heads of one KV group equal budgets."""

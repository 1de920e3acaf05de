"""Policies: each turns a Profile and a number of tokens into budgets per head. One file per policy."""

from __future__ import annotations

from typing import Protocol

import torch

from ..plan import PlanTail
from ..profile import Profile
from .fisher import fisher
from .mass import mass
from .output_error import output_error
from .permuted import permuted
from .random import random
from .separability import separability
from .uniform import uniform


class Policy(Protocol):
    """Budgets `[layers, Hq]` int64 summing to `total` tokens, each from 1 to the profile's length."""

    def __call__(self, profile: Profile, tail: PlanTail, total: int, seed: int) -> torch.Tensor:
        """`total`: tokens to hand out over all heads, at least one each; `seed`: used by the controls only."""


POLICIES: dict[str, Policy] = {
    "fisher": fisher,
    "output_error": output_error,
    "mass": mass,
    "separability": separability,
    "uniform": uniform,
    "permuted": permuted,
    "random": random,
}

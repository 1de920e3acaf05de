"""Spend tokens where attention mass is missing."""

from __future__ import annotations

import torch

from ..curves import complete, spend
from ..plan import PlanTail
from ..profile import Profile


def mass(profile: Profile, tail: PlanTail, total: int, seed: int) -> torch.Tensor:
    """Least summed missing attention mass 1 - M(N) (forward pass only; any tail alike).

    The weight of a learned sink, which no token has, counts as missing at every N below the limit.
    """
    missing = (1.0 - profile.kept_mass()).clamp_min(0.0)
    return spend(complete(missing, profile), total)

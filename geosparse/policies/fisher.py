"""The default policy: spend tokens where the loss feels them."""

from __future__ import annotations

import torch

from ..curves import complete, spend
from ..plan import PlanTail
from ..profile import Profile


def fisher(profile: Profile, tail: PlanTail, total: int, seed: int) -> torch.Tensor:
    """Least summed (g . e)^2: the loss gradient times the head's error, squared (needs the backward pass)."""
    return spend(complete(profile.fisher(tail), profile), total)

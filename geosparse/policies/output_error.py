"""Spend tokens where a head's output is most wrong."""

from __future__ import annotations

import torch

from ..curves import complete, spend
from ..plan import PlanTail
from ..profile import Profile


def output_error(profile: Profile, tail: PlanTail, total: int, seed: int) -> torch.Tensor:
    """Least summed relative output error |W_O e|^2 / |W_O z|^2 (forward pass only)."""
    return spend(complete(profile.relative_output_error(tail), profile), total)

"""The default policy: spend tokens where the loss feels them."""

from __future__ import annotations

import torch

from ..choices import Choices


def fisher(choices: Choices, total: int, seed: int) -> torch.Tensor:
    """Least summed (g . e)^2: the loss gradient times the head's error, squared (needs the backward pass)."""
    return choices.spend(choices.curves("fisher"), total)

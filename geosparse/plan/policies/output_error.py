"""Spend tokens where a head's output is most wrong."""

from __future__ import annotations

import torch

from ..candidates import Candidates
from .policy import policy


@policy("heads whose output is most wrong; needs no gradient", measure="output_error", shareable=True)
def output_error(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """Least summed relative output error |W_O e|^2 / |W_O z|^2 (forward pass only)."""
    return candidates.spend(candidates.curves("output_error"), total)

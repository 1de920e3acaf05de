"""Near-exact: every key is scored as its few-bit code has it; only the kept keys are read."""

from __future__ import annotations

import torch

from ..topn import top_n
from .view import Choice, Sight


def lowbit(sight: Sight, shared: torch.Tensor | None = None) -> Choice:
    """The N highest logits of coded keys (exact ones where no page is complete yet); they also say the tail's mass."""
    keep, kept = top_n(sight.coarse if shared is None else shared, sight.budgets)
    return Choice(keep, kept, sight.coarse)

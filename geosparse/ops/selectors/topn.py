"""Exact: every key is scored."""

from __future__ import annotations

import torch

from ..topn import top_n
from .view import Choice, Sight


def topn(sight: Sight, shared: torch.Tensor | None = None) -> Choice:
    """The N highest logits; `shared` ranks in their place where the heads of a KV group select together."""
    keep, kept = top_n(sight.scores if shared is None else shared, sight.budgets)
    return Choice(keep, kept, sight.scores)

"""Control: the plan of `fisher` with its heads mixed up."""

from __future__ import annotations

import torch

from ..candidates import Candidates
from .fisher import fisher
from .policy import policy


@policy("control: the N of `fisher` on shuffled heads", deals=True)
def permuted(candidates: Candidates, total: int, seed: int) -> torch.Tensor:
    """The budgets of `fisher`, dealt to random heads of the model."""
    return deal(fisher(candidates, total, seed), seed)


def deal(table: torch.Tensor, seed: int) -> torch.Tensor:
    """The entries of `table` `[layers, Hq]` in a random order that depends on its shape and the seed only."""
    return table.flatten()[_order(table, seed)].view_as(table)


def undo_deal(table: torch.Tensor, seed: int) -> torch.Tensor:
    """The table that `deal` made this one of."""
    original = torch.empty_like(table.flatten())
    original[_order(table, seed)] = table.flatten()
    return original.view_as(table)


def _order(table: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randperm(table.numel(), generator=torch.Generator().manual_seed(seed), dtype=torch.int64, device="cpu")

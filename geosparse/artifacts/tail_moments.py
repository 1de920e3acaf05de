"""What a profile holds of tails with shares of their own: second moments of the parts of their errors.

A head's error is linear in the shares c of its tail (`ops.tails`): e = c @ x - y, with y what the kept tokens lack of
the dense output and x what a tail adds per unit of each share. So the mean of any quadratic form of e, at any shares,
follows from the mean of that form over pairs of parts (y, x_1, ..., x_4).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import combinations_with_replacement

import torch

from ..ops.tails import TailShares

PARTS = 1 + len(TailShares._fields)
PAIRS = tuple(combinations_with_replacement(range(PARTS), 2))
"""Pairs of parts in the order in which they are stored."""
TAIL_FISHER, TAIL_OUTPUT = TAIL_ARRAYS = ("tails.fisher", "tails.output")
"""Their names in the file of a profile."""


@dataclass(frozen=True, eq=False)
class TailMoments:
    """Mean products of the parts of heads' errors, `[windows, selectors, layers, Hq, budgets, PAIRS]` fp64.

    Attributes:
        fisher: Of g . part, with g the gradient of the window's summed loss, nats^2.
        output: Of W_O part.
    """

    fisher: torch.Tensor
    output: torch.Tensor

    def of_windows(self, rows: list[int]) -> TailMoments:
        """Those of some windows."""
        return replace(self, **{item.name: getattr(self, item.name)[rows] for item in fields(self)})


def pack(products: torch.Tensor) -> torch.Tensor:
    """Symmetric `[..., PARTS, PARTS]` -> `[..., PAIRS]`."""
    first, second = zip(*PAIRS, strict=True)
    return products[..., list(first), list(second)]


def unpack(pairs: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack`."""
    products = pairs.new_empty(*pairs.shape[:-1], PARTS, PARTS)
    for place, (first, second) in enumerate(PAIRS):
        products[..., first, second] = products[..., second, first] = pairs[..., place]
    return products


def error_at(products: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The mean error of tails with `shares` `[..., 4]`, from `[..., PARTS, PARTS]`; never below zero."""
    direction = torch.cat([shares.new_full((*shares.shape[:-1], 1), -1.0), shares], -1)
    return ((products @ direction.unsqueeze(-1)).squeeze(-1) * direction).sum(-1).clamp_min(0.0)

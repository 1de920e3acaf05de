"""How many tokens a head keeps at a context: a constant, or a power of the visible tokens."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

# Keeps a budget that is half a token by definition from falling either way with the last bit of a power.
NUDGE = 1e-9
# More tokens than any context has; a grown budget beyond would not fit int64.
MOST = 2**31


class Budgets(NamedTuple):
    """The budgets of some heads, any leading shape.

    Attributes:
        n_keep: int64 >= 1, tokens kept at `reference` visible tokens or fewer.
        growth: fp64 >= 0, the exponent by which they grow beyond; None: they do not.
        reference: Visible tokens from which they grow.
    """

    n_keep: torch.Tensor
    growth: torch.Tensor | None = None
    reference: int = 1

    def of(self, layer: int) -> Budgets:
        """Those of one layer, where the first dimension is layers."""
        return Budgets(self.n_keep[layer], None if self.growth is None else self.growth[layer], self.reference)

    def at(self, visible: torch.Tensor) -> torch.Tensor:
        """N `[*heads, *visible]` int64 at `visible` tokens: round(n_keep * max(1, visible / reference)^growth).

        N may exceed the visible tokens; all of them are kept then.
        """
        shape = (*self.n_keep.shape, *[1] * visible.dim())
        n = self.n_keep.view(shape)
        if self.growth is None:
            return n.expand(*self.n_keep.shape, *visible.shape).to(visible.device)
        ratio = (visible.double() / self.reference).clamp_min(1.0)
        grown = n.to(visible.device) * ratio ** self.growth.view(shape).to(visible.device)
        return (grown + 0.5 + NUDGE).floor().clamp_max_(MOST).long()


@lru_cache(maxsize=16384)
def budgets_of_row(
    n_keep: tuple[int, ...], growth: tuple[float, ...] | None, reference: int, visible: int
) -> tuple[int, ...]:
    """`Budgets.at` for one number of visible tokens, in plain Python: what a decode step asks for."""
    if growth is None or visible <= reference:
        return n_keep
    ratio = visible / reference
    return tuple(min(int(n * ratio**power + 0.5 + NUDGE), MOST) for n, power in zip(n_keep, growth, strict=True))

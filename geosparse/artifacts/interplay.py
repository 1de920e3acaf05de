"""Cross-head interaction: what the errors of heads do to each other, measured by a second pass with a plan active.

The first pass prices every head alone: half the mean (g . e)^2, as if all others were dense. Under a plan all heads err
at once. With the loss as the divergence of the sparse from the dense predictions, expanded to second order,

    KL(e) = 1/2 sum_hk e_h F_hk e_k,   dKL/dz_h = sum_k F_hk e_k,

a head with the error e_h(N), beside the present errors e' of the others, costs

    1/2 e_h F_hh e_h  +  e_h . (dKL/dz_h - F_hh e'_h).

The first term is the price alone, the second what it costs among the others; it may be negative, where errors cancel.
All heads are planned again simultaneously, each as if the others stayed. The second term is therefore damped, and the
price of a head moves by a bounded factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

DAMPING = 0.5
"""The fraction of the second term that counts."""
MAX_PRICE_FACTOR = 3.0
"""A price is moved by at most this factor, up or down."""
MIN_ALONE_FRACTION = 0.02
"""A head's price alone counts for at least this fraction of the mean over heads."""


@dataclass(frozen=True, eq=False)
class Interplay:
    """Prices of every head, tail and N under a plan, nats per token.

    Attributes:
        alone: Half the mean (g . e)^2, `[tails, layers, Hq, budgets]` fp64.
        among: The mean of e . (dKL/dz - F e'), same shape.
    """

    alone: torch.Tensor
    among: torch.Tensor

    @property
    def factors(self) -> torch.Tensor:
        """By what to multiply the mean (g . e)^2, `[tails, layers, Hq, budgets]`, MAX_PRICE_FACTOR at most."""
        floor = MIN_ALONE_FRACTION * self.alone.mean((1, 2), keepdim=True)
        tiny = torch.finfo(torch.float64).tiny
        return (1 + DAMPING * self.among / self.alone.clamp_min(floor).clamp_min(tiny)).clamp(
            1 / MAX_PRICE_FACTOR, MAX_PRICE_FACTOR
        )

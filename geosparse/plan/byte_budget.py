"""Spending bytes instead of tokens: selector and N of every head at one price per byte.

At a price every head has a best N under each selector, and every KV group a best selector: the scan is paid once per
group, and a head may always go without (a selector that scans nothing). The price is lowered until the bytes are spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..errors import GeosparseError
from ..ops import SELECTORS, Selector
from .cost_model import TokenBytes, shared_rows
from .error_curves import budgets_at_price, marginal_gains

PRICE_STEPS = 50

Options = Mapping[Selector, torch.Tensor]
Split = tuple[torch.Tensor, torch.Tensor]


class Market:
    """What heads buy at a price.

    The price of a byte is the Lagrange multiplier of the byte budget: at one price every head decides for itself, and
    the decisions together are the least summed error for the bytes that they read (on convex curves).
    """

    def __init__(
        self, curves: Options, members: int, rows: TokenBytes, visible: torch.Tensor, stretch: torch.Tensor
    ) -> None:
        """Prepare the curves.

        Args:
            curves: Per selector the error of each buyer at N = 1, 2, ..., `[layers, H, length]`, infinite where it may
                not serve.
            members: Buyers per KV group: query heads, or 1 where they share a selection.
            rows: What a token weighs.
            visible: `[layers]`, tokens that a query sees at the length planned for.
            stretch: `[layers, H]`, N at the length planned for over N at the curves' length.
        """
        self.members = members
        self.rows = rows
        self.visible = visible.double()
        self.stretch = stretch
        self.allowed = {selector: torch.isfinite(curve[..., 0]) for selector, curve in curves.items()}
        known = {selector: curve.nan_to_num(posinf=0.0) for selector, curve in curves.items()}
        gains = {selector: marginal_gains(curve) for selector, curve in known.items()}
        self.losses = {selector: -gain for selector, gain in gains.items()}
        # The error at N tokens, on the hull.
        self.errors = {
            name: torch.cat([known[name][..., -1:] + gain.flip(-1).cumsum(-1).flip(-1), known[name][..., -1:]], -1)
            for name, gain in gains.items()
        }

    def buy(self, price: float) -> Split:
        """Indices in SELECTORS and N at the curves' length, each `[layers, H]` int64, where a byte costs `price`."""
        offers = {selector: self._offer(selector, price) for selector in self.losses}
        layers, heads = self.stretch.shape
        grouped = (layers, heads // self.members, self.members)
        totals, selectors, amounts = [], [], []
        for selector, (cost, amount) in offers.items():
            scan = price * self.rows.scanned(selector) * self.visible[:, None]
            choice = torch.full_like(amount, SELECTORS.names.index(selector))
            for free in (each for each in offers if each != selector and not SELECTORS[each].scans):
                free_cost, free_amount = offers[free]
                cheaper = free_cost < cost
                cost, amount = torch.minimum(cost, free_cost), torch.where(cheaper, free_amount, amount)
                choice = choice.masked_fill(cheaper, SELECTORS.names.index(free))
            # A group pays for the scan once.
            totals.append(cost.view(grouped).sum(-1) + scan)
            selectors.append(choice)
            amounts.append(amount)
        best = torch.stack(totals).argmin(0).repeat_interleave(self.members, dim=-1).unsqueeze(0)
        return torch.stack(selectors).gather(0, best)[0], torch.stack(amounts).gather(0, best)[0]

    def _offer(self, selector: Selector, price: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Cost (error and bytes, without the scan) and N of each head under one selector."""
        row = price * self.rows.kept(selector) * shared_rows(self.members) * self.stretch
        amount = budgets_at_price(self.losses[selector], row)
        error = self.errors[selector].gather(-1, (amount - 1).unsqueeze(-1)).squeeze(-1)
        cost = error + row * amount
        return cost.masked_fill(~self.allowed[selector], torch.inf), amount


def spend_bytes(market: Market, count: Callable[[Split], float], most: float) -> Split:
    """The split of the lowest price at which `count` of it, bytes, is at most `most`.

    Raises:
        GeosparseError: Even the cheapest split reads more.
    """
    low, high = 1e-25, 1e25
    cheapest = market.buy(high)
    if count(cheapest) > most:
        raise GeosparseError(
            f"No plan reads {most:.0f} bytes or less: the cheapest reads {count(cheapest):.0f}; give more bytes, or "
            "profile a selector that scans less."
        )
    best = cheapest
    for _ in range(PRICE_STEPS):
        middle = low**0.5 * high**0.5
        split = market.buy(middle)
        if count(split) <= most:
            best, high = split, middle
        else:
            low = middle
    return best

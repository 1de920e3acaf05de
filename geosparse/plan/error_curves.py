"""Error curves over N and how tokens are spent on them.

Each head has an error curve over N. The curve is completed to every whole N, replaced by its lower convex hull, and
tokens are handed out one by one where the hull falls most: for convex curves that greedy order is the optimum of
"least summed damage at this mean N".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..artifacts.profile import Profile

# Up to FINE_TOKENS tokens every N counts by itself, beyond that steps of 2 %.
FINE_TOKENS, COARSE_RATIO = 128, 1.02


def complete(curves: torch.Tensor, profile: Profile) -> torch.Tensor:
    """Error curves `[layers, Hq, G]` at the measured budgets -> `[layers, Hq, length]` at N = 1, 2, ..., length.

    Between measurements the curve is a power law (a line in log-log); from the last one below the most tokens that the
    layer's queries can see, it falls in a line to zero there.
    """
    every = torch.arange(1, profile.length + 1, dtype=torch.float64, device="cpu")
    layers = zip(curves, profile.limits, strict=True)
    return torch.stack([_complete_layer(layer, profile.budgets, limit, every) for layer, limit in layers])


def complete_at(curves: torch.Tensor, profile: Profile, n_keep: torch.Tensor) -> torch.Tensor:
    """`complete` at one N of each head: `[..., layers, Hq, G]` and `[layers, Hq]` -> `[..., layers, Hq]`."""
    n, rows = n_keep.clamp(1, profile.length).double().contiguous(), []
    for layer, limit in enumerate(profile.limits):
        curve = curves[..., layer, :, :]
        shape = curve.shape[:-1]
        at = n[layer].expand(shape).reshape(-1, 1)
        rows.append(_complete_layer(curve.reshape(len(at), -1), profile.budgets, limit, at).view(shape))
    return torch.stack(rows, -2)


def _complete_layer(curves: torch.Tensor, budgets: Sequence[int], limit: int, n: torch.Tensor) -> torch.Tensor:
    """`complete` for one layer, `[Hq, G]` at `n` `[K]` or `[Hq, K]` -> `[Hq, K]`."""
    # Budgets from the limit on have no error; a power law towards zero would promise too much to those before it.
    measured = sum(budget < limit for budget in budgets) or 1
    grid = torch.tensor(budgets[:measured], dtype=torch.float64, device="cpu")
    floor = curves.amax(-1, keepdim=True).clamp_min(1e-300) * 1e-12
    logs = curves[:, :measured].clamp_min(floor).cummin(-1).values.log()
    right = torch.searchsorted(grid, n.contiguous()).clamp_max(measured - 1)
    left = (right - 1).clamp_min(0)
    span = (grid[right].log() - grid[left].log()).clamp_min(1e-12)
    share = ((n.log() - grid[left].log()) / span).clamp(0.0, 1.0)
    before, after = (logs.gather(-1, column.expand(len(curves), -1)) for column in (left, right))
    full = (before * (1 - share) + after * share).exp()
    descent = (limit - n) / max(limit - budgets[measured - 1], 1)
    return full * descent.clamp(0.0, 1.0)


def spend(curves: torch.Tensor, total: int) -> torch.Tensor:
    """Hand out `total` tokens over heads so that the summed convex hulls of `curves` are least.

    Args:
        curves: `[layers, Hq, length]`, the damage at N = 1, 2, ..., length.
        total: Tokens in all, at least one per head.

    Returns:
        `[layers, Hq]` int64 budgets from 1 to length, summing to `total`.
    """
    layers, heads, length = curves.shape
    gains = marginal_gains(curves)
    rest = total - layers * heads
    budgets = torch.ones(layers * heads, dtype=torch.int64, device="cpu")
    if rest > 0:
        # Gains fall along each row, so the `rest` largest of all are prefixes of rows; a stable sort keeps ties so.
        best = gains.flatten().argsort(descending=True, stable=True)[:rest]
        budgets += torch.bincount(best // (length - 1), minlength=layers * heads)
    return budgets.view(layers, heads)


def marginal_gains(curves: torch.Tensor) -> torch.Tensor:
    """What each further token is worth, `[layers, Hq, length]` -> `[layers, Hq, length - 1]` fp64, falling.

    Beyond FINE_TOKENS tokens the hull is that of every N in steps of 2 %, and a line between them.
    """
    import numpy as np

    rows, length = curves.reshape(-1, curves.shape[-1]), curves.shape[-1]
    steps = FINE_TOKENS * COARSE_RATIO ** torch.arange(
        1, max(1, math.ceil(math.log(length / FINE_TOKENS, COARSE_RATIO))), dtype=torch.float32, device="cpu"
    )
    marks = [
        torch.arange(min(FINE_TOKENS, length), dtype=torch.int64, device="cpu"),
        steps.long().clamp_max(length - 1),
        torch.tensor([length - 1], dtype=torch.int64, device="cpu"),
    ]
    grid: torch.Tensor = torch.unique(torch.cat(marks))
    corners = convex_hull(rows[:, grid], grid).numpy()
    positions = np.arange(length)
    hulls = torch.from_numpy(np.stack([np.interp(positions, grid.numpy(), row) for row in corners])).view(curves.shape)
    return hulls[..., :-1] - hulls[..., 1:]


def convex_hull(curves: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
    """The largest convex function below each row of `curves` `[R, length]`, fp64.

    Args:
        curves: `[R, P]`.
        positions: `[P]` ascending, where the columns are; by default 0, 1, 2, ...

    Corners are found from left to right, in all rows at once: a corner goes when it lies on or above the line from the
    one before it to the point that comes.
    """
    import numpy as np

    values = curves.double().numpy()
    count, length = values.shape
    at = np.arange(length) if positions is None else positions.numpy()
    rows = np.arange(count)
    corners = np.zeros((count, length), dtype=np.int64)
    last = np.zeros(count, dtype=np.int64)
    for column in range(1, length):
        pending = rows[last > 0]
        while len(pending):
            end = last[pending]
            middle, left = corners[pending, end], corners[pending, end - 1]
            low, high = values[pending, left], values[pending, column]
            lift = (values[pending, middle] - low) * (at[column] - at[left])
            pending = pending[lift >= (high - low) * (at[middle] - at[left])]
            last[pending] -= 1
            pending = pending[last[pending] > 0]
        last += 1
        corners[rows, last] = column
    hulls = [
        np.interp(at, at[kept := row[: end + 1]], curve[kept])
        for row, end, curve in zip(corners, last, values, strict=True)
    ]
    return torch.from_numpy(np.stack(hulls))


def budgets_at_price(losses: torch.Tensor, price: torch.Tensor | float) -> torch.Tensor:
    """Budgets at which every token that is worth more than `price` is bought.

    Args:
        losses: `[..., length - 1]`, minus the `marginal_gains`: rising along each row.
        price: Of a token, one for all heads or `[...]`.

    Returns:
        `[...]` int64 from 1.
    """
    prices = torch.as_tensor(price, dtype=torch.float64, device=losses.device).expand(losses.shape[:-1]).unsqueeze(-1)
    return torch.searchsorted(losses.contiguous(), -prices.contiguous()).squeeze(-1) + 1

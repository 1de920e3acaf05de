"""Error curves over N and how tokens are spent on them.

Each head has an error curve over N. The curve is completed to every whole N, replaced by its lower convex hull, and
tokens are handed out one by one where the hull falls most: for convex curves that greedy order is the optimum of
"least summed damage at this mean N".
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .profile import Profile


def complete(curves: torch.Tensor, profile: Profile) -> torch.Tensor:
    """Error curves `[layers, Hq, G]` at the measured budgets -> `[layers, Hq, length]` at N = 1, 2, ..., length.

    Between measurements the curve is a power law (a line in log-log); from the last one below the most tokens that the
    layer's queries can see, it falls in a line to zero there.
    """
    layers = zip(curves, profile.limits, strict=True)
    return torch.stack([_complete_layer(layer, profile.budgets, limit, profile.length) for layer, limit in layers])


def _complete_layer(curves: torch.Tensor, budgets: Sequence[int], limit: int, length: int) -> torch.Tensor:
    """`complete` for one layer, `[Hq, G]` -> `[Hq, length]`."""
    # Budgets from the limit on have no error; a power law towards zero would promise too much to those before it.
    measured = sum(budget < limit for budget in budgets) or 1
    grid = torch.tensor(budgets[:measured], dtype=torch.float64)
    n = torch.arange(1, length + 1, dtype=torch.float64)
    floor = curves.amax(-1, keepdim=True).clamp_min(1e-300) * 1e-12
    logs = curves[:, :measured].clamp_min(floor).cummin(-1).values.log()
    right = torch.searchsorted(grid, n).clamp_max(measured - 1)
    left = (right - 1).clamp_min(0)
    span = (grid[right].log() - grid[left].log()).clamp_min(1e-12)
    share = ((n.log() - grid[left].log()) / span).clamp(0.0, 1.0)
    full = (logs[:, left] * (1 - share) + logs[:, right] * share).exp()
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
    hulls = convex_hull(curves.reshape(-1, length))
    gains = hulls[:, :-1] - hulls[:, 1:]
    rest = total - layers * heads
    budgets = torch.ones(layers * heads, dtype=torch.int64)
    if rest > 0:
        # Gains fall along each row, so the `rest` largest of all are prefixes of rows; a stable sort keeps ties so.
        best = gains.flatten().argsort(descending=True, stable=True)[:rest]
        budgets += torch.bincount(best // (length - 1), minlength=layers * heads)
    return budgets.view(layers, heads)


def convex_hull(curves: torch.Tensor) -> torch.Tensor:
    """The largest convex function below each row of `curves` `[R, length]`, fp64."""
    import numpy as np

    hulls = np.empty(tuple(curves.shape))
    places = range(curves.shape[1])
    for row, curve in enumerate(curves.double().tolist()):  # lists: indexing numpy is several times slower
        corners: list[int] = []
        for place in places:
            while len(corners) > 1 and _above_chord(curve, corners[-2], corners[-1], place):
                corners.pop()
            corners.append(place)
        hulls[row] = np.interp(places, corners, [curve[corner] for corner in corners])
    return torch.from_numpy(hulls)


def _above_chord(curve: list[float], left: int, middle: int, right: int) -> bool:
    """Whether `middle` lies on or above the line from `left` to `right`."""
    return (curve[middle] - curve[left]) * (right - left) >= (curve[right] - curve[left]) * (middle - left)

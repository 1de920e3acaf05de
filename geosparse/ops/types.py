"""What every attention path returns, and the words they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch

Tail = Literal["drop", "renormalize", "centroid"]
TAILS: tuple[Tail, ...] = get_args(Tail)
Tails = Tail | Sequence[Tail]  # one for all heads, or one per query head


def tail_flags(tail: Tails, heads: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which heads renormalise and which use the centroid: two bool `[1, Hq, 1, 1]` on the device of `like`."""
    words = [tail] * heads if isinstance(tail, str) else list(tail)
    flags = torch.tensor([[word == "renormalize" for word in words], [word == "centroid" for word in words]])
    renormalize, centroid = flags.view(2, 1, heads, 1, 1).to(like.device)
    return renormalize, centroid


class Attended(NamedTuple):
    """The result of one attention call, with the kept tokens counted from the selection itself."""

    output: torch.Tensor  # [B, Hq, T, Dv]
    kept: torch.Tensor  # [Hq] int64, tokens kept, summed over batch and queries

"""What every attention path returns, and the words they share."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch

Tail = Literal["drop", "renormalize", "centroid"]
TAILS: tuple[Tail, ...] = get_args(Tail)


class Attended(NamedTuple):
    """The result of one attention call, with the kept tokens counted from the selection itself."""

    output: torch.Tensor  # [B, Hq, T, Dv]
    kept: torch.Tensor  # [Hq] int64, tokens kept, summed over batch and queries

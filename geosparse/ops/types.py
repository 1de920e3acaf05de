"""What every attention path returns, and the words they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar, get_args

import torch

from ..errors import GeosparseError, did_you_mean

Tail = Literal["drop", "renormalize", "centroid"]
TAILS: tuple[Tail, ...] = get_args(Tail)
Tails = Tail | Sequence[Tail]  # one for all heads, or one per query head

Selector = Literal["topn", "lowbit", "paged", "paged+lowbit", "sink_recent"]
SELECTORS: tuple[Selector, ...] = get_args(Selector)
Selectors = Selector | Sequence[Selector]  # one for all heads, or one per query head
INDEXED: frozenset[Selector] = frozenset({"lowbit", "paged", "paged+lowbit"})  # those that read a KeyIndex

Keep = Sequence[int] | torch.Tensor  # Hq budgets, or int64 [B or 1, Hq, T or 1]

Word = TypeVar("Word", bound=str)


def check_selector(selector: str) -> None:
    """Raise GeosparseError unless `selector` is a word of SELECTORS."""
    if selector not in SELECTORS:
        raise GeosparseError(f"Unknown selector {selector!r}: {did_you_mean(selector, SELECTORS)}")


def per_head(words: Word | Sequence[Word], heads: int) -> list[Word]:
    """One word per head."""
    return [words] * heads if isinstance(words, str) else list(words)


def keep_tensor(n_keep: Keep, device: torch.device | str) -> torch.Tensor:
    """Budgets as int64 `[B or 1, Hq, T or 1]`."""
    if isinstance(n_keep, torch.Tensor):
        return n_keep.to(device)
    return torch.tensor(list(n_keep), dtype=torch.int64, device=device)[None, :, None]


def tail_flags(tail: Tails, heads: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which heads renormalise and which use the centroid: two bool `[1, Hq, 1, 1]` on the device of `like`."""
    words = per_head(tail, heads)
    flags = torch.tensor([[word == "renormalize" for word in words], [word == "centroid" for word in words]])
    renormalize, centroid = flags.view(2, 1, heads, 1, 1).to(like.device)
    return renormalize, centroid


class Attended(NamedTuple):
    """The result of one attention call, with the kept tokens counted from the selection itself."""

    output: torch.Tensor  # [B, Hq, T, Dv]
    kept: torch.Tensor  # [Hq] int64, tokens kept, summed over batch and queries

"""What every attention path returns, and the words they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeVar, cast, get_args

import torch

from ..errors import GeosparseError, did_you_mean

Tail = Literal["drop", "renormalize", "centroid", "even", "blend25", "blend50", "blend75"]
TAILS: tuple[Tail, ...] = get_args(Tail)
Tails = Tail | Sequence[Tail]  # one for all heads, or one per query head

# Tails that give the missing mass away: the part of it that goes to the mean of the visible values. The rest goes to
# the kept tokens, to each the same, whatever its weight.
SHARES: dict[Tail, float] = {"centroid": 1.0, "even": 0.0, "blend25": 0.25, "blend50": 0.5, "blend75": 0.75}

# Words for a tail of each head's own, and those that it is one of.
CHOICES: dict[str, tuple[Tail, ...]] = {"best": ("drop", "renormalize", "centroid"), "blend": TAILS}

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


def meant(tail: str) -> tuple[Tail, ...]:
    """The tails that a word of TAILS or CHOICES stands for."""
    return CHOICES.get(tail, (cast(Tail, tail),))


def per_head(words: Word | Sequence[Word], heads: int) -> list[Word]:
    """One word per head."""
    return [words] * heads if isinstance(words, str) else list(words)


def needs_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd is to go through a call with these tensors."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def keep_tensor(n_keep: Keep, device: torch.device | str) -> torch.Tensor:
    """Budgets as int64 `[B or 1, Hq, T or 1]`."""
    if isinstance(n_keep, torch.Tensor):
        if n_keep.is_floating_point() or n_keep.dtype == torch.bool:
            raise GeosparseError(f"Budgets are whole numbers of tokens, found {n_keep.dtype}: pass int64.")
        return n_keep.to(device, torch.int64)
    return torch.tensor(list(n_keep), dtype=torch.int64, device=device)[None, :, None]


class TailFlags(NamedTuple):
    """What the tails of the heads do, `[1, Hq, 1, 1]` each.

    Attributes:
        renormalize: bool, the kept weights are scaled to the sum 1.
        centred: bool, a part of the missing mass goes to the mean of the visible values.
        even: fp32, the part of the missing mass that goes to the kept tokens, to each the same.
    """

    renormalize: torch.Tensor
    centred: torch.Tensor
    even: torch.Tensor


def tail_flags(tail: Tails, heads: int, like: torch.Tensor) -> TailFlags:
    """The flags of a layer's heads, on the device of `like`."""
    words = per_head(tail, heads)
    pairs = [[word == "renormalize" for word in words], [SHARES.get(word, 0.0) > 0 for word in words]]
    flags = torch.tensor(pairs, dtype=torch.bool, device="cpu")
    renormalize, centred = flags.view(2, 1, heads, 1, 1).to(like.device)
    even = torch.tensor([1.0 - SHARES.get(word, 1.0) for word in words], dtype=torch.float32, device="cpu")
    return TailFlags(renormalize, centred, even.view(1, heads, 1, 1).to(like.device))


class Attended(NamedTuple):
    """The result of one attention call, with the kept tokens counted from the selection itself."""

    output: torch.Tensor  # [B, Hq, T, Dv]
    kept: torch.Tensor  # [Hq] int64, tokens kept, summed over batch and queries

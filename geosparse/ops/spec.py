"""What every attention path returns, and the words they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch

from ..errors import GeosparseError
from .tails import TailShares, shares_of

Tail = str  # a name in ops.tails.TAILS
Tails = Tail | Sequence[Tail | TailShares]  # one name for all heads, or one tail per query head
T = TypeVar("T")
Selector = str  # a name in ops.selectors.SELECTORS
Selectors = Selector | Sequence[Selector]  # one for all heads, or one per query head

Keep = Sequence[int] | torch.Tensor  # Hq budgets, or int64 [B or 1, Hq, T or 1]


def per_head(words: str | Sequence[T], heads: int) -> list[str | T]:
    """One word, or other rule, per head."""
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


class TailParts(NamedTuple):
    """The shares of the heads' tails (`ops.tails`), `[1, Hq, 1, 1]` fp32 each, and which of them renormalize, bool."""

    mean: torch.Tensor
    kept: torch.Tensor
    weighted: torch.Tensor
    pages: torch.Tensor
    renormalize: torch.Tensor


def tail_parts(tail: Tails, heads: int, like: torch.Tensor) -> TailParts:
    """The tails of a layer's heads, on the device of `like`."""
    shares = [shares_of(each) for each in per_head(tail, heads)]
    numbers = torch.tensor(shares, dtype=torch.float32, device="cpu").T.contiguous().view(4, 1, heads, 1, 1)
    renormalize = torch.tensor([each.renormalize for each in shares], dtype=torch.bool, device="cpu")
    mean, kept, weighted, pages = numbers.to(like.device)
    return TailParts(mean, kept, weighted, pages, renormalize.view(1, heads, 1, 1).to(like.device))


class Attended(NamedTuple):
    """The result of one attention call, with the kept tokens counted from the selection itself."""

    output: torch.Tensor  # [B, Hq, T, Dv]
    kept: torch.Tensor  # [Hq] int64, tokens kept, summed over batch and queries

"""What every attention path returns, and the words they share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import GeosparseError
from .tails import TAIL_RULES

Tail = str  # a name in ops.tails.TAILS
Tails = Tail | Sequence[Tail]  # one for all heads, or one per query head
Selector = str  # a name in ops.selectors.SELECTORS
Selectors = Selector | Sequence[Selector]  # one for all heads, or one per query head

Keep = Sequence[int] | torch.Tensor  # Hq budgets, or int64 [B or 1, Hq, T or 1]


def per_head(words: str | Sequence[str], heads: int) -> list[str]:
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
    rules = [TAIL_RULES[name] for name in per_head(tail, heads)]
    pairs = [[rule.renormalize for rule in rules], [rule.mean_fraction > 0 for rule in rules]]
    flags = torch.tensor(pairs, dtype=torch.bool, device="cpu")
    renormalize, centred = flags.view(2, 1, heads, 1, 1).to(like.device)
    even = torch.tensor([rule.kept_fraction for rule in rules], dtype=torch.float32, device="cpu")
    return TailFlags(renormalize, centred, even.view(1, heads, 1, 1).to(like.device))


class Attended(NamedTuple):
    """The result of one attention call, with the kept tokens counted from the selection itself."""

    output: torch.Tensor  # [B, Hq, T, Dv]
    kept: torch.Tensor  # [Hq] int64, tokens kept, summed over batch and queries

"""The mean value of every complete page, for tails that give missing mass to the pages that it is missing from."""

from __future__ import annotations

import torch

from . import huge_pages
from .key_index import Pages, slot_of

HALF_MAX = torch.finfo(torch.float16).max


class ValueMeans(Pages):
    """Means `[B, Hkv, P, Dv]` fp16 of the values of complete pages, kept up to date as the values grow."""

    PARTS = ("means",)
    means: torch.Tensor

    def empty(self, rooms: tuple[int, int, int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Means, zeroed."""
        return (huge_pages.empty(rooms, torch.float16, device).zero_(),)

    def encode(self, block: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The means of pages `[..., P, PAGE, D]`."""
        return (block.mean(-2).clamp(-HALF_MAX, HALF_MAX).half(),)


def means_of(value: torch.Tensor, first: tuple[int, ...]) -> ValueMeans:
    """The page means of `value` `[B, Hkv, S, Dv]`: the remembered ones, brought up to date, or else new ones."""
    slot = slot_of(value)
    if slot.means is None or slot.means.first != first:
        slot.means = ValueMeans(first, slot.device)
    return slot.means.extend(value)

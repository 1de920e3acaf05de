"""What is kept of a layer's complete pages of keys or values: it never changes once a page is there.

Pages hold PAGE tokens each and are counted from each row's first token that is not padding; a decode step sees of them
what a prefill saw.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch

from .modes import lasting

PAGE = 16
SPARE = 0.125


class Pages:
    """Parts `[B, Hkv, P, ...]` of the complete pages of one layer's keys or values, kept up to date as they grow."""

    PARTS: ClassVar[tuple[str, ...]] = ()

    def __init__(self, first: tuple[int, ...], device: torch.device | None = None) -> None:
        """No pages.

        Args:
            first: Per batch row the first key that is not padding.
            device: Where to keep them; by default where the keys and values are.
        """
        self.first = first
        self.device = device
        self.pages = [0] * len(first)
        self.heads = 1
        self._set(tuple(torch.empty(0, dtype=torch.float32, device="cpu") for _ in self.PARTS))

    def empty(self, rooms: tuple[int, int, int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Parts, zeroed, for `rooms`: batch rows, KV heads, pages, channels."""
        raise NotImplementedError

    def encode(self, block: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Parts of pages `[..., P, PAGE, D]` fp32."""
        raise NotImplementedError

    def twin(self) -> Self:
        """The same without pages."""
        return type(self)(self.first, self.device)

    @property
    def parts(self) -> tuple[torch.Tensor, ...]:
        """The tensors, in the order of PARTS, room to spare included."""
        return tuple(getattr(self, name) for name in self.PARTS)

    def _set(self, parts: tuple[torch.Tensor, ...]) -> None:
        for name, part in zip(self.PARTS, parts, strict=True):
            setattr(self, name, part)

    @property
    def room(self) -> int:
        """Pages that the tensors have room for."""
        return self.parts[0].shape[2] if self.parts[0].dim() > 1 else 0

    def extend(self, rows: torch.Tensor) -> Self:
        """Take in the pages of `rows` `[B, Hkv, S, D]` that are complete and not yet here; no other is read."""
        self.heads, tokens = rows.shape[1:3]
        goal = [max(0, tokens - first) // PAGE for first in self.first]
        if goal != self.pages:
            with lasting():
                self._take_in(rows, goal)
        return self

    def _take_in(self, rows: torch.Tensor, goal: list[int]) -> None:
        """`extend` to the pages `goal` of each row."""
        batch, heads, _, dim = rows.shape
        device = self.device or rows.device
        self._reserve((batch, heads, max(goal), dim), device)
        alike = len(set(zip(self.first, self.pages, strict=True))) == 1
        for row in [slice(None)] if alike else range(batch):
            place = 0 if isinstance(row, slice) else row
            start, stop = self.pages[place], goal[place]
            if stop > start:
                first = self.first[place]
                block = rows[row, :, first + start * PAGE : first + stop * PAGE].to(device).float()
                block = block.reshape(*block.shape[:-2], stop - start, PAGE, dim)
                for part, found in zip(self.parts, self.encode(block), strict=True):
                    part[row, :, start:stop] = found
        self.pages = goal

    def _reserve(self, rooms: tuple[int, int, int, int], device: torch.device) -> None:
        """Room for pages, amortised."""
        batch, heads, pages, dim = rooms
        have = self.room
        if pages <= have:
            return
        room = pages if not have else pages + max(8, int(SPARE * pages))
        grown = self.empty((batch, heads, room, dim), device)
        for new, old in zip(grown, self.parts, strict=True):
            if have:
                new[:, :, :have] = old
        self._set(grown)

    def truncate(self, tokens: int) -> None:
        """Forget the pages that reach beyond `tokens` tokens."""
        goal = [max(0, tokens - first) // PAGE for first in self.first]
        self.pages = [min(have, most) for have, most in zip(self.pages, goal, strict=True)]

    def take(self, rows: torch.Tensor) -> None:
        """Replace the batch rows by `rows` `[B']` of them."""
        places = rows.tolist()
        self.first = tuple(self.first[row] for row in places)
        self.pages = [self.pages[row] for row in places]
        if self.room:
            with lasting():
                rows = rows.to(self.parts[0].device)
                self._set(tuple(part[rows] for part in self.parts))

    def copy(self) -> Self:
        """The same pages in memory of their own, without room to spare."""
        twin = self.twin()
        twin.pages, twin.heads = list(self.pages), self.heads
        if self.room:
            filled = slice(max(self.pages))
            with lasting():
                twin._set(tuple(part[:, :, filled].clone() for part in self.parts))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is stored: filled pages only."""
        return dict(vars(self.copy()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.copy()

    __copy__ = copy

    def bytes(self) -> int:
        """Bytes held, room to spare included."""
        return sum(part.numel() * part.element_size() for part in self.parts)

"""Pages of keys and values whose home is host memory: those that were read lately have a copy on the device.

Least recently read pages make room. A page here is PAGE tokens from a multiple of PAGE on, whatever padding there is,
and each KV head of each batch row has pages of its own: a row, below, is one of these `R = B * Hkv`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .key_index import PAGE
from .modes import lasting

NOTE = "_geosparse_pages"  # the attribute of keys that says which pages are on the device


class Resident(NamedTuple):
    """Tokens on the device: keys `[B, Hkv, U, D]`, values `[B, Hkv, U, Dv]`, places `[B, Hkv, U]` (-1: no token)."""

    key: torch.Tensor
    value: torch.Tensor
    places: torch.Tensor


class HotPages:
    """The device's copies of one layer's pages."""

    def __init__(self, capacity: int) -> None:
        """Room for pages, empty.

        Args:
            capacity: Pages per row to keep; a step that reads more at once gets more.
        """
        self.capacity = capacity
        self.fetched = 0  # pages copied to the device so far
        self.clear()

    def clear(self) -> None:
        """Forget all copies: the keys are others."""
        self._keys = self._values = torch.empty(0, dtype=torch.float32, device="cpu")  # [R, H, PAGE, D]
        self._page_of = self._read = torch.empty(
            0, 0, dtype=torch.int64, device="cpu"
        )  # [R, H]: -1 for none; the step it was read
        self._slot_of = torch.empty(0, 0, dtype=torch.int64, device="cpu")  # [R, P], -1 for none
        self._step = 0

    def bytes(self) -> int:
        """Bytes of keys and values on the device."""
        return sum(part.numel() * part.element_size() for part in (self._keys, self._values))

    def read(self, key: torch.Tensor, value: torch.Tensor, needed: torch.Tensor) -> Resident:
        """See to it that the needed tokens are on the device, and return all that are.

        Args:
            key: `[B, Hkv, S, D]` in host memory.
            value: `[B, Hkv, S, Dv]` likewise.
            needed: bool `[B, Hkv, S]` on the device; the last page, while it is not complete, comes along anyway.
        """
        batch, heads, keys, _ = key.shape
        rows, pages = batch * heads, keys // PAGE
        whole = needed[..., : pages * PAGE].reshape(rows, pages, PAGE).any(-1)
        with lasting():
            self._make_room(rows, pages, int(whole.sum(-1).max()) if pages else 0, key, value, needed.device)
            self._step += 1
            self._fetch(whole, key, value)
        offsets = torch.arange(PAGE, device=needed.device, dtype=torch.int64)
        places = torch.where(self._page_of[..., None] < 0, -1, self._page_of[..., None] * PAGE + offsets)
        rest = torch.arange(pages * PAGE, keys, device=needed.device, dtype=torch.int64).expand(batch, heads, -1)
        parts = [
            torch.cat(
                [pool.view(batch, heads, -1, pool.shape[-1]), host[:, :, pages * PAGE :].to(needed.device)], dim=2
            )
            for pool, host in ((self._keys, key), (self._values, value))
        ]
        return Resident(parts[0], parts[1], torch.cat([places.view(batch, heads, -1), rest], dim=-1))

    def _make_room(
        self, rows: int, pages: int, least: int, key: torch.Tensor, value: torch.Tensor, device: torch.device
    ) -> None:
        """Slots for `least` pages of each row at once, and a place in the table for all pages."""
        slots = max(self.capacity, least)
        have = self._page_of.shape[-1]
        if have < slots:
            grown = [
                torch.zeros(rows, slots, PAGE, host.shape[-1], dtype=host.dtype, device=device) for host in (key, value)
            ]
            page_of = torch.full((rows, slots), -1, device=device, dtype=torch.int64)
            read = torch.full((rows, slots), -1, device=device, dtype=torch.int64)
            if have:
                grown[0][:, :have], grown[1][:, :have] = self._keys, self._values
                page_of[:, :have], read[:, :have] = self._page_of, self._read
            self._keys, self._values = grown
            self._page_of, self._read = page_of, read
        known = self._slot_of.shape[-1]
        if known < pages or not known:
            slot_of = torch.full((rows, pages + pages // 8 + 8), -1, device=device, dtype=torch.int64)
            if known:
                slot_of[:, :known] = self._slot_of
            self._slot_of = slot_of

    def _fetch(self, needed: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Copy the needed pages `[R, P]` that are missing into the slots that were read longest ago."""
        table = self._slot_of[:, : needed.shape[1]]
        row, page = (needed & (table >= 0)).nonzero(as_tuple=True)
        self._read[row, table[row, page]] = self._step
        missing = needed & (table < 0)
        row, page = missing.nonzero(as_tuple=True)
        if not len(row):
            return
        oldest = self._read.argsort(dim=-1, stable=True)
        slot = oldest[row, (missing.cumsum(-1) - 1)[row, page]]
        before = self._page_of[row, slot]
        self._slot_of[row[before >= 0], before[before >= 0]] = -1
        self._slot_of[row, page], self._page_of[row, slot], self._read[row, slot] = slot, page, self._step
        self.fetched += len(row)
        there = row.to(key.device), page.to(key.device)
        for pool, host in ((self._keys, key), (self._values, value)):
            whole = host[:, :, : needed.shape[1] * PAGE].view(*host.shape[:2], -1, PAGE, host.shape[-1])
            batch, head = there[0] // key.shape[1], there[0] % key.shape[1]
            pool[row, slot] = whole[batch, head, there[1]].to(pool.device, non_blocking=True)


def remember_pages(key: torch.Tensor, pages: HotPages) -> None:
    """Say, on the tensor itself, that the home of `key` is host memory and which pages are on the device."""
    setattr(key, NOTE, pages)


def pages_of(key: torch.Tensor) -> HotPages | None:
    """What `remember_pages` said of this very tensor; None for keys that are on the device altogether."""
    return getattr(key, NOTE, None)

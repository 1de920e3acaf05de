"""An index over the keys of one layer: per page of tokens the bounds of each channel, and the keys in a few bits.

Pages start at the first token that is not padding and only complete ones are in the index, so that a page never
changes once it is there and a decode step sees what a prefill saw. Layout, read by the kernels as it is:

    low, high  [B, Hkv, P, W] fp16                 smallest and largest key of each channel in a page
    codes      [B, Hkv, P, W / 8, PAGE, 4] uint8   4 bits: channels 8j + 2i, then 8j + 2i + 1, in byte i
               [B, Hkv, P, W / 4, PAGE, 4] uint8   8 bits: channel 4j + i in byte i

with W the key dimension rounded up to a multiple of WIDTH. A key is about `low + code * (high - low) / levels`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from . import huge_pages
from .modes import lasting

PAGE = 16
WIDTH = 16
LEVELS = {4: 15, 8: 255}
SPARE = 0.125
HALF_MAX = torch.finfo(torch.float16).max
# The expected range of 16 normal draws is 3.532 standard deviations (Tippett 1925): variance over squared half range.
SPREAD = (2 / 3.532) ** 2


class PageScores(NamedTuple):
    """What the bounds say of every page, `[B, Hq, T, P]`, before scaling."""

    bound: torch.Tensor  # no dot product with a key of the page is larger
    centre: torch.Tensor  # the dot product with the middle of the bounds
    variance: torch.Tensor  # of the dot products, if the page's keys scatter independently between the bounds


class KeyIndex:
    """The complete pages of one layer's keys, kept up to date as the keys grow."""

    def __init__(self, first: tuple[int, ...], bits: int = 4, device: torch.device | None = None) -> None:
        """An index without pages.

        Args:
            first: Per batch row the first key that is not padding.
            bits: Bits per channel, 4 or 8.
            device: Where to keep it; by default where the keys are.
        """
        self.first = first
        self.bits = bits
        self.device = device
        self.pages = [0] * len(first)
        self.heads = 1
        self.low = self.high = self.codes = torch.empty(0, dtype=torch.float32, device="cpu")

    def extend(self, key: torch.Tensor) -> KeyIndex:
        """Take in the pages of `key` `[B, Hkv, S, D]` that are complete and not yet here; earlier ones are not read."""
        self.heads, keys = key.shape[1:3]
        goal = [max(0, keys - first) // PAGE for first in self.first]
        if goal != self.pages:
            with lasting():
                self._take_in(key, goal)
        return self

    def _take_in(self, key: torch.Tensor, goal: list[int]) -> None:
        """`extend` to the pages `goal` of each row."""
        batch, heads, _, dim = key.shape
        device = self.device or key.device
        self._reserve(max(goal), batch, heads, -(-dim // WIDTH) * WIDTH, device)
        rows = range(batch) if len(set(zip(self.first, self.pages, strict=True))) > 1 else [slice(None)]
        for row in rows:
            place = 0 if isinstance(row, slice) else row
            start, stop = self.pages[place], goal[place]
            if stop > start:
                first = self.first[place]
                block = key[row, :, first + start * PAGE : first + stop * PAGE].to(device).float()
                pages = block.reshape(*block.shape[:-2], stop - start, PAGE, dim)
                low, high, codes = encode(pages, self.bits)
                self.low[row, :, start:stop], self.high[row, :, start:stop] = low, high
                self.codes[row, :, start:stop] = codes
        self.pages = goal

    def _reserve(self, pages: int, batch: int, heads: int, width: int, device: torch.device) -> None:
        """Room for `pages` pages, amortised."""
        have = self.low.shape[2] if self.low.dim() == 4 else 0
        if pages <= have:
            return
        room = pages if not have else pages + max(8, int(SPARE * pages))
        blocks = width * self.bits // 32
        bounds, codes = (batch, heads, room, width), (batch, heads, room, blocks, PAGE, 4)
        sizes = [2 * math.prod(bounds)] * 2 + [math.prod(codes)]
        whole = huge_pages.empty((sum(sizes),), torch.uint8, device).zero_()
        low, high, coded = torch.split(whole, sizes)
        grown = (low.view(torch.float16).view(bounds), high.view(torch.float16).view(bounds), coded.view(codes))
        for new, old in zip(grown, (self.low, self.high, self.codes), strict=True):
            if have:
                new[:, :, :have] = old
        self.low, self.high, self.codes = grown

    def truncate(self, keys: int) -> None:
        """Forget the pages that reach beyond `keys` tokens."""
        goal = [max(0, keys - first) // PAGE for first in self.first]
        self.pages = [min(have, most) for have, most in zip(self.pages, goal, strict=True)]

    def take(self, rows: torch.Tensor) -> None:
        """Replace the batch rows by `rows` `[B']` of them."""
        places = rows.tolist()
        self.first = tuple(self.first[row] for row in places)
        self.pages = [self.pages[row] for row in places]
        if self.low.dim() == 4:
            with lasting():
                rows = rows.to(self.low.device)
                self.low, self.high, self.codes = self.low[rows], self.high[rows], self.codes[rows]

    def copy(self) -> KeyIndex:
        """The same pages in memory of their own, without room to spare."""
        twin = KeyIndex(self.first, self.bits, self.device)
        twin.pages, twin.heads = list(self.pages), self.heads
        if self.low.dim() == 4:
            filled = slice(max(self.pages))
            with lasting():
                parts = (part[:, :, filled].clone() for part in (self.low, self.high, self.codes))
                twin.low, twin.high, twin.codes = parts
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """What is stored: filled pages only."""
        return dict(vars(self.copy()))

    def __deepcopy__(self, memo: dict[int, Any]) -> KeyIndex:
        return self.copy()

    __copy__ = copy

    def bytes(self) -> int:
        """Bytes held, room to spare included."""
        return sum(part.numel() * part.element_size() for part in (self.low, self.high, self.codes))

    def decoded(self, keys: int, dim: int) -> torch.Tensor:
        """The keys as the codes have them, `[B, Hkv, S, D]` fp32; zeros outside complete pages."""
        batch, heads = self.low.shape[:2] if self.low.dim() == 4 else (len(self.first), self.heads)
        result = torch.zeros(batch, heads, keys, dim, device=self.low.device, dtype=torch.float32)
        for row, (first, pages) in enumerate(zip(self.first, self.pages, strict=True)):
            if pages:
                low, high, codes = (part[row, :, :pages] for part in (self.low, self.high, self.codes))
                result[row, :, first : first + pages * PAGE] = decode(low, high, codes, self.bits, dim).flatten(-3, -2)
        return result

    def page_scores(self, query: torch.Tensor) -> PageScores:
        """The pages against `query` `[B, Hq, T, D]` fp32; what lies behind a row's own pages means nothing."""
        pages, dim = max(self.pages), query.shape[-1]
        if not pages:
            return PageScores(*[query.new_empty(*query.shape[:-1], 0)] * 3)
        low, high = (part[:, :, :pages, :dim].to(query.dtype).transpose(-1, -2) for part in (self.low, self.high))
        batch, heads, queries, _ = query.shape
        grouped = query.reshape(batch, low.shape[1], -1, dim)
        shape = (batch, heads, queries, pages)
        return PageScores(
            (grouped.clamp_min(0) @ high + grouped.clamp_max(0) @ low).view(shape),
            (grouped @ ((low + high) / 2)).view(shape),
            (SPREAD * (grouped.square() @ ((high - low) / 2).square())).view(shape),
        )


def encode(pages: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys `[..., P, PAGE, D]` fp32 -> low, high `[..., P, W]` fp16 and the packed codes."""
    pages = torch.nn.functional.pad(pages.nan_to_num(), (0, -pages.shape[-1] % WIDTH))
    low, high = (bound.clamp(-HALF_MAX, HALF_MAX).half() for bound in (pages.amin(-2), pages.amax(-2)))
    base, step = low.float().unsqueeze(-2), _step(low, high, bits).unsqueeze(-2)
    codes = ((pages - base) / torch.where(step > 0, step, 1.0)).round().clamp(0, LEVELS[bits]).to(torch.uint8)
    if bits == 4:
        pairs = codes.view(*codes.shape[:-1], -1, 4, 2)
        codes = pairs[..., 0] | (pairs[..., 1] << 4)
    else:
        codes = codes.view(*codes.shape[:-1], -1, 4)
    return low, high, codes.transpose(-2, -3).contiguous()


def decode(low: torch.Tensor, high: torch.Tensor, codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """The inverse of `encode`, as far as there is one: `[..., P, PAGE, D]` fp32."""
    codes = codes.transpose(-2, -3)
    if bits == 4:
        codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2, -1)
    keys = codes.flatten(-2, -1).float() * _step(low, high, bits).unsqueeze(-2) + low.float().unsqueeze(-2)
    return keys[..., :dim]


def _step(low: torch.Tensor, high: torch.Tensor, bits: int) -> torch.Tensor:
    return (high.float() - low.float()) / LEVELS[bits]


class IndexSlot:
    """Where a cache layer keeps its index; it goes with the layer's keys as an attribute of the tensor."""

    def __init__(self, device: torch.device | None = None) -> None:
        """A slot without an index.

        Args:
            device: Where the index is to be; by default where the keys are.
        """
        self.index: KeyIndex | None = None
        self.device = device


def remember_index(key: torch.Tensor, slot: IndexSlot) -> None:
    """Say, on the tensor itself, where the index of `key` is kept."""
    key._geosparse_index = slot  # type: ignore[attr-defined]


def index_of(key: torch.Tensor, first: tuple[int, ...], bits: int = 4) -> KeyIndex:
    """The index of `key` `[B, Hkv, S, D]`: the remembered one, brought up to date, or else a new one."""
    slot = getattr(key, "_geosparse_index", None) or IndexSlot()
    if slot.index is None or slot.index.first != first or slot.index.bits != bits:
        slot.index = KeyIndex(first, bits, slot.device)
    return slot.index.extend(key)

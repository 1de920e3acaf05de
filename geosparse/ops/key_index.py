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
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch

from . import huge_pages
from .modes import lasting

if TYPE_CHECKING:
    from .value_means import ValueMeans

PAGE = 16
WIDTH = 16
SPARE = 0.125
LEVELS = {4: 15, 8: 255}
HALF_MAX = torch.finfo(torch.float16).max
# The expected range of 16 normal draws is 3.532 standard deviations (Tippett 1925): variance over squared half range.
SPREAD = (2 / 3.532) ** 2


class PageScores(NamedTuple):
    """What the bounds say of every page, `[B, Hq, T, P]`, before scaling."""

    bound: torch.Tensor  # no dot product with a key of the page is larger
    centre: torch.Tensor  # the dot product with the middle of the bounds
    variance: torch.Tensor  # of the dot products, if the page's keys scatter independently between the bounds


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


class KeyIndex(Pages):
    """The complete pages of one layer's keys, kept up to date as the keys grow."""

    PARTS = ("low", "high", "codes")
    low: torch.Tensor
    high: torch.Tensor
    codes: torch.Tensor

    def __init__(self, first: tuple[int, ...], bits: int = 4, device: torch.device | None = None) -> None:
        """An index without pages.

        Args:
            first: Per batch row the first key that is not padding.
            bits: Bits per channel, 4 or 8.
            device: Where to keep it; by default where the keys are.
        """
        super().__init__(first, device)
        self.bits = bits

    def empty(self, rooms: tuple[int, int, int, int], device: torch.device) -> tuple[torch.Tensor, ...]:
        """Bounds and codes, zeroed, in one piece of memory."""
        batch, heads, room, dim = rooms
        width = -(-dim // WIDTH) * WIDTH
        bounds, codes = (batch, heads, room, width), (batch, heads, room, width * self.bits // 32, PAGE, 4)
        sizes = [2 * math.prod(bounds)] * 2 + [math.prod(codes)]
        whole = huge_pages.empty((sum(sizes),), torch.uint8, device).zero_()
        low, high, coded = torch.split(whole, sizes)
        return low.view(torch.float16).view(bounds), high.view(torch.float16).view(bounds), coded.view(codes)

    def encode(self, block: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`encode` of pages, in the bits of this index."""
        return encode(block, self.bits)

    def twin(self) -> KeyIndex:
        """The same without pages."""
        return KeyIndex(self.first, self.bits, self.device)

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
    """Where a cache layer keeps what is known of its pages; it goes with its keys and values as an attribute."""

    def __init__(self, device: torch.device | None = None) -> None:
        """An empty slot.

        Args:
            device: Where the pages are to be; by default where the keys are.
        """
        self.index: KeyIndex | None = None
        self.means: ValueMeans | None = None
        self.device = device

    @property
    def held(self) -> tuple[Pages, ...]:
        """The index and the means, where there are any."""
        return tuple(pages for pages in (self.index, self.means) if pages is not None)

    def clear(self) -> None:
        """Forget all pages."""
        self.index = self.means = None

    def copy(self) -> IndexSlot:
        """The same pages in memory of their own."""
        twin = IndexSlot(self.device)
        twin.index = None if self.index is None else self.index.copy()
        twin.means = None if self.means is None else self.means.copy()
        return twin


def remember_index(rows: torch.Tensor, slot: IndexSlot) -> None:
    """Say, on the tensor itself, where the pages of `rows`, keys or values, are kept."""
    rows._geosparse_index = slot  # type: ignore[attr-defined]


def slot_of(rows: torch.Tensor) -> IndexSlot:
    """What `remember_index` said of this very tensor; else an empty slot."""
    return getattr(rows, "_geosparse_index", None) or IndexSlot()


def index_of(key: torch.Tensor, first: tuple[int, ...], bits: int = 4) -> KeyIndex:
    """The index of `key` `[B, Hkv, S, D]`: the remembered one, brought up to date, or else a new one."""
    slot = slot_of(key)
    if slot.index is None or slot.index.first != first or slot.index.bits != bits:
        slot.index = KeyIndex(first, bits, slot.device)
    return slot.index.extend(key)

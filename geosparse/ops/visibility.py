"""Which keys a query sees, described instead of stored: a long prompt has no room for a mask of T x S."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .key_index import PAGE


def causal_mask(queries: int, keys: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """`[1, 1, T, S]` bool: the last query sees every key, each earlier one a key fewer."""
    rows = torch.arange(keys - queries, keys, device=device, dtype=torch.int64)[:, None]
    return (torch.arange(keys, device=device, dtype=torch.int64)[None, :] <= rows)[None, None]


@dataclass(frozen=True)
class Span:
    """Causality with the last query at the last key, left padding, and perhaps a sliding window.

    Attributes:
        first: Per batch row, the first key that is not padding; one number stands for all rows.
        window: The most keys a query sees, its own included; None where nothing slides.
    """

    first: tuple[int, ...] = (0,)
    window: int | None = None

    @property
    def is_causal(self) -> bool:
        """Whether this is plain causality: no padding, no window."""
        return self.window is None and not any(self.first)

    def contiguous(self) -> Span:
        """Itself: transformers asks its masks for this in `generate`."""
        return self

    def starts(self, batch: int) -> tuple[int, ...]:
        """`first` of each of `batch` rows."""
        return self.first * batch if len(self.first) == 1 else self.first

    def visible(self, batch: int, queries: int, keys: int, device: torch.device | str = "cpu") -> torch.Tensor:
        """How many keys each query sees, `[B, T]` int64."""
        if queries == 1 and len(set(self.first)) == 1:
            count = max(0, keys - self.first[0])
            return torch.full(
                (batch, 1), count if self.window is None else min(count, self.window), device=device, dtype=torch.int64
            )
        places = torch.arange(keys - queries, keys, device=device, dtype=torch.int64)
        if len(set(self.first)) == 1:
            rows = (places + 1 - self.first[0]).clamp_min_(0)[None]
        else:
            rows = (places[None] + 1 - torch.tensor(self.first, device=device, dtype=torch.int64)[:, None]).clamp_min_(
                0
            )
        return (rows if self.window is None else rows.clamp_max_(self.window)).expand(batch, queries)

    def key_range(self, start: int, stop: int, queries: int, keys: int) -> tuple[int, int]:
        """The first key that any of the queries [start, stop) of T may see, and the one behind the last."""
        end = keys - queries + stop
        first = min(self.first)
        if self.window is not None:
            first = max(first, keys - queries + start - self.window + 1)
        return min(first, end - 1), end

    def mask(
        self,
        queries: int,
        keys: int,
        device: torch.device | str = "cpu",
        part: tuple[int, int] | None = None,
        among: tuple[int, int] | None = None,
    ) -> torch.Tensor:
        """`[B or 1, 1, t, s]` bool of the queries `part` (default all T) and the keys `among` (default all S)."""
        start, stop = part or (0, queries)
        low, high = among or (0, keys)
        return self.rows(torch.arange(start, stop, device=device, dtype=torch.int64), queries, keys)[..., low:high]

    def rows(self, places: torch.Tensor, queries: int, keys: int) -> torch.Tensor:
        """`[B or 1, 1, t, S]` bool of the queries `places` `[t]` of T."""
        row = places[:, None] + (keys - queries)
        column = torch.arange(keys, device=places.device, dtype=torch.int64)[None]
        seen = column <= row
        if self.window is not None:
            seen &= column > row - self.window
        first = torch.tensor(self.first, device=places.device, dtype=torch.int64)[:, None, None, None]
        return seen & (column >= first) if any(self.first) else seen[None, None]


def span_of(mask: torch.Tensor) -> Span | None:
    """The Span of a bool mask `[B, 1, 1, S]` for one query per row; None where what it sees has holes or an end."""
    rows = mask[:, 0, 0]
    count = rows.sum(-1)
    first = rows.shape[-1] - count
    tail = torch.arange(rows.shape[-1], device=rows.device, dtype=torch.int64) >= first[:, None]
    return Span(tuple(first.tolist())) if bool((rows == tail).all()) else None


Visibility = Span | torch.Tensor  # a bool tensor [B or 1, 1, T, S] says what no Span can


def page_starts(seen: Visibility, batch: int) -> tuple[int, ...]:
    """Where the pages of each row start: at its first visible key. Only without a window is there such a key."""
    assert isinstance(seen, Span)
    assert seen.window is None
    return seen.starts(batch)


def page_mean(weight: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Every visible token's share of its page's weight: the mean over its page, or its own behind the complete ones.

    Args:
        weight: `[..., S]`, zero where not visible.
        seen: bool, broadcastable to it. Pages are PAGE visible tokens each, counted from the first.
    """
    rank = seen.cumsum(-1) - 1
    page = (rank.clamp_min(0) // PAGE).expand(weight.shape)
    complete = seen & (rank // PAGE < seen.sum(-1, keepdim=True) // PAGE)
    sums = weight.new_zeros(*weight.shape[:-1], weight.shape[-1] // PAGE + 1).scatter_add(-1, page, weight)
    return torch.where(complete, sums.gather(-1, page) / PAGE, weight)


def page_mean_of_first(weight: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """`page_mean` of queries that see the first `visible` `[..., T]` keys, which is faster."""
    keys = weight.shape[-1]
    pages = torch.nn.functional.pad(weight, (0, -keys % PAGE))
    pages = pages.view(*pages.shape[:-1], -1, PAGE)
    place = torch.arange(pages.shape[-2], device=weight.device, dtype=torch.int64)
    complete = (place < visible.unsqueeze(-1) // PAGE).unsqueeze(-1)
    return torch.where(complete, pages.mean(-1, keepdim=True), pages).flatten(-2)[..., :keys]


def visible_rows(seen: Visibility, batch: int, queries: int, keys: int, device: torch.device | str) -> torch.Tensor:
    """How many keys each query sees, `[B, T]` int64."""
    if isinstance(seen, Span):
        return seen.visible(batch, queries, keys, device)
    return seen[:, 0].sum(-1).expand(batch, queries)


def dense_mask(seen: Visibility, queries: int, keys: int, device: torch.device | str) -> torch.Tensor:
    """`[B or 1, 1, T, S]` bool."""
    return seen.mask(queries, keys, device) if isinstance(seen, Span) else seen


def chunk_of(
    seen: Visibility, start: int, stop: int, queries: int, keys: int, device: torch.device | str
) -> tuple[torch.Tensor, int, int]:
    """The bool mask `[B or 1, 1, t, s]` of the queries [start, stop) over the keys that any of them sees, and which."""
    if isinstance(seen, Span):
        first, end = seen.key_range(start, stop, queries, keys)
        return seen.mask(queries, keys, device, (start, stop), (first, end)), first, end
    part = seen[:, :, start:stop]
    columns = part.flatten(0, -2).any(0).nonzero()
    first, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
    return part[..., first:end], first, end

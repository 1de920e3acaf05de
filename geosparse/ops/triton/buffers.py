"""The cache of one layer with a fixed capacity and all state on the device: what a captured step decodes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import GeosparseError
from ..buffers import numbers, zeros
from ..key_index import PAGE, WIDTH
from .decode import Keys
from .launch import launch
from .stages import page_room, width_of


class VisibleRows:
    """Which keys the rows of a batch see; the layers of a model share it.

    Attributes:
        first: int32 `[B]`, the first visible key.
        length: int32 `[B]`, the one behind the last.
        capacity: The tokens that the smallest of the layers' buffers holds; None before there are any.
    """

    def __init__(self, first: torch.Tensor, length: torch.Tensor, longest: int) -> None:
        """Args:
        first: int32 `[B]`.
        length: int32 `[B]`.
        longest: The largest number in `length`.
        """
        self.first, self.length = first, length
        self.capacity: int | None = None
        self._longest = self._longest_at_start = longest
        self._start = length.clone()

    @classmethod
    def of(cls, first: Sequence[int], length: Sequence[int], device: torch.device | str) -> VisibleRows:
        """From plain numbers."""
        if len(first) != len(length) or not all(0 <= start <= end for start, end in zip(first, length, strict=True)):
            raise GeosparseError(
                f"Expected rows that start at 0 or later and end no earlier, found {list(first)} to {list(length)}."
            )
        device = torch.device(device)
        ends = [numbers(list(places), torch.int32, device) for places in (first, length)]
        return cls(ends[0], ends[1], max(length, default=0))

    @property
    def ends(self) -> tuple[torch.Tensor, torch.Tensor]:
        """`first` and `length`, as kernels take them."""
        return self.first, self.length

    def hold(self, capacity: int) -> None:
        """Keep the rows within `capacity` tokens from here on."""
        if self._longest > capacity:
            raise GeosparseError(f"The rows have up to {self._longest} tokens, and the buffers hold {capacity}.")
        self.capacity = capacity if self.capacity is None else min(capacity, self.capacity)

    def advance_(self) -> None:
        """Make room for a token in each row, before the layers append it.

        Raises:
            GeosparseError: The buffers of a layer are full. A replayed graph, which runs no code, overwrites the last
                token instead.
        """
        if self.capacity is not None:
            if self._longest >= self.capacity:
                raise GeosparseError(f"The buffers hold {self.capacity} tokens and are full: make them larger.")
            self._longest += 1
            self.length.add_(1).clamp_(max=self.capacity)
            return
        self._longest += 1
        self.length.add_(1)

    def restart_(self) -> None:
        """Go back to the lengths of the beginning; the layers forget nothing that lies before them."""
        self.length.copy_(self._start)
        self._longest = self._longest_at_start


class LayerBuffers:
    """Keys, values, their index, sum and page means, for `capacity` tokens in each row."""

    def __init__(
        self, rows: VisibleRows, capacity: int, kv_heads: int, dim: int, value_dim: int, dtype: torch.dtype
    ) -> None:
        """Buffers of zeros.

        Args:
            rows: What the rows see.
            capacity: The most tokens.
            kv_heads: KV heads of the layer.
            dim: Numbers of a key.
            value_dim: Numbers of a value.
            dtype: Of keys and values.
        """
        rows.hold(capacity)
        self.rows = rows
        batch, device, width = len(rows.first), rows.first.device, -(-dim // WIDTH) * WIDTH
        room = page_room(capacity)
        self.key = zeros((batch, kv_heads, capacity, dim), dtype, device)
        self.value = zeros((batch, kv_heads, capacity, value_dim), dtype, device)
        self.value_sum = zeros((batch, kv_heads, value_dim), torch.float64, device)
        self.means = zeros((batch, kv_heads, room, value_dim), torch.float16, device)
        self.low, self.high = zeros((2, batch, kv_heads, room, width), torch.float16, device).unbind()
        self.codes = zeros((batch, kv_heads, room, width // 8, PAGE, 4), torch.uint8, device)

    @property
    def keys(self) -> Keys:
        """What `decode` takes."""
        return Keys(self.key, self.value, *self.rows.ends, self.low, self.high, self.codes, self.value_sum, self.means)

    def fill(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Start from `key` `[B, Hkv, T, D]` and `value` `[B, Hkv, T, Dv]`, of which `rows` says what is visible."""
        tokens = key.shape[2]
        self.key[:, :, :tokens], self.value[:, :, :tokens] = key, value
        place = torch.arange(tokens, device=key.device, dtype=torch.int64)
        seen = (place >= self.rows.first[:, None]) & (place < self.rows.length[:, None])
        self.value_sum.copy_(torch.where(seen[:, None, :, None], value, 0.0).sum(2, dtype=torch.float64))
        encode_index(self.key, self.low, self.high, self.codes, *self.rows.ends)
        average_values(self.value, self.means, *self.rows.ends)

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take in `key` `[B, Hkv, 1, D]` and `value` `[B, Hkv, 1, Dv]` behind `rows.advance_()`; a kernel launch."""
        from .kernels.update import append_token

        kv_heads, dim, value_dim = self.key.shape[1], self.key.shape[-1], self.value.shape[-1]
        codes = self.codes.view(torch.int32)
        key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (key, value))
        launch(
            append_token, (len(key) * kv_heads,),
            key, value, self.key, self.value, self.value_sum, self.means, self.low, self.high, codes,
            *self.rows.ends,
            *key.stride()[:2], *value.stride()[:2], *self.key.stride()[:3], *self.value.stride()[:3],
            *self.means.stride()[:2], *self.low.stride()[:2], *codes.stride()[:2],
            KV=kv_heads, D=dim, DV=value_dim, WIDTH=self.low.shape[-1], DP=width_of(dim), DVP=width_of(value_dim),
        )  # fmt: skip


def encode_index(
    key: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    codes: torch.Tensor,
    first: torch.Tensor,
    length: torch.Tensor,
) -> None:
    """Write the index of all complete pages of `key` `[B, Hkv, S, D]` in the layout of a KeyIndex of 4 bits."""
    from .kernels.update import encode_pages

    batch, kv_heads, keys, dim = key.shape
    words = codes.view(torch.int32)
    launch(
        encode_pages, (batch * kv_heads, max(1, keys // PAGE)),
        key, low, high, words, first, length,
        *key.stride()[:3], *low.stride()[:2], *words.stride()[:2],
        KV=kv_heads, D=dim, WIDTH=low.shape[-1], DP=width_of(dim),
    )  # fmt: skip


def average_values(value: torch.Tensor, means: torch.Tensor, first: torch.Tensor, length: torch.Tensor) -> None:
    """Write the means `[B, Hkv, P, Dv]` fp16 of all complete pages of `value` `[B, Hkv, S, Dv]`, as in ValueMeans."""
    from .kernels.update import average_pages

    batch, kv_heads, keys, dim = value.shape
    launch(
        average_pages, (batch * kv_heads, max(1, keys // PAGE)),
        value, means, first, length, *value.stride()[:3], *means.stride()[:2],
        KV=kv_heads, DV=dim, DVP=width_of(dim),
    )  # fmt: skip

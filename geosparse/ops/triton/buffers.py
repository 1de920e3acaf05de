"""The cache of one layer with a fixed capacity and all state on the device: what a captured step decodes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..key_index import PAGE, WIDTH
from .decode import Keys
from .stages import launch, page_room, width_of


class VisibleRows(NamedTuple):
    """Which keys the rows of a batch see; the layers of a model share it.

    Attributes:
        first: int32 `[B]`, the first visible key.
        length: int32 `[B]`, the one behind the last.
    """

    first: torch.Tensor
    length: torch.Tensor

    @classmethod
    def of(cls, first: Sequence[int], length: Sequence[int], device: torch.device | str) -> VisibleRows:
        """From plain numbers."""
        return cls(
            *(torch.tensor(list(numbers), dtype=torch.int32, device="cpu").to(device) for numbers in (first, length))
        )

    def advance_(self) -> None:
        """Make room for a token in each row, before the layers append it."""
        self.length.add_(1)


class LayerBuffers:
    """Keys, values, their index and sum, for `capacity` tokens in each row."""

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
        self.rows = rows
        batch, device, width = len(rows.first), rows.first.device, -(-dim // WIDTH) * WIDTH
        room = page_room(capacity)
        self.key = torch.zeros(batch, kv_heads, capacity, dim, dtype=dtype, device=device)
        self.value = torch.zeros(batch, kv_heads, capacity, value_dim, dtype=dtype, device=device)
        self.value_sum = torch.zeros(batch, kv_heads, value_dim, dtype=torch.float64, device=device)
        self.low, self.high = torch.zeros(2, batch, kv_heads, room, width, dtype=torch.float16, device=device).unbind()
        self.codes = torch.zeros(batch, kv_heads, room, width // 8, PAGE, 4, dtype=torch.uint8, device=device)

    @property
    def keys(self) -> Keys:
        """What `decode` takes."""
        return Keys(self.key, self.value, *self.rows, self.low, self.high, self.codes, self.value_sum)

    def fill(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Start from `key` `[B, Hkv, T, D]` and `value` `[B, Hkv, T, Dv]`, of which `rows` says what is visible."""
        tokens = key.shape[2]
        self.key[:, :, :tokens], self.value[:, :, :tokens] = key, value
        place = torch.arange(tokens, device=key.device, dtype=torch.int64)
        seen = (place >= self.rows.first[:, None]) & (place < self.rows.length[:, None])
        self.value_sum.copy_(torch.where(seen[:, None, :, None], value, 0.0).sum(2, dtype=torch.float64))
        encode_index(self.key, self.low, self.high, self.codes, *self.rows)

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Take in `key` `[B, Hkv, 1, D]` and `value` `[B, Hkv, 1, Dv]` behind `rows.advance_()`; a kernel launch."""
        from .kernels.update import append_token

        kv_heads, dim, value_dim = self.key.shape[1], self.key.shape[-1], self.value.shape[-1]
        codes = self.codes.view(torch.int32)
        key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (key, value))
        launch(
            append_token, (len(key) * kv_heads,),
            key, value, self.key, self.value, self.value_sum, self.low, self.high, codes, *self.rows,
            *key.stride()[:2], *value.stride()[:2], *self.key.stride()[:3], *self.value.stride()[:3],
            *self.low.stride()[:2], *codes.stride()[:2],
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

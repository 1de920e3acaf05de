"""A cache layer whose keys and values live in host memory; the index and the pages read last stay on the device.

A decode step of a sparsified model copies only the pages that its heads keep tokens of and that are not there yet.
Everything else (prompts, dense models, selectors that score every key) copies keys and values to the device for the
length of the layer's turn, so that results never depend on offloading. On a CPU host and device are the same memory
and the same code runs; that it helps on a GPU has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...ops import IndexSlot, remember_index, remember_value_sum
from ...ops.hot_pages import HotPages, remember_pages
from .growing import GrowingLayer, device_of

HOME = torch.device("cpu")


class OffloadedLayer(GrowingLayer):
    """A GrowingLayer at home in host memory, pinned where the device is a GPU."""

    def __init__(self, hot_pages: int) -> None:
        """An empty layer.

        Args:
            hot_pages: Pages per KV head and batch row on the device.
        """
        self.pages = HotPages(hot_pages)
        self._device: torch.device | None = None
        super().__init__()

    def new_slot(self) -> IndexSlot:
        """An empty place for an index, on the device."""
        return IndexSlot(self._device)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[B, Hkv, T, D]`; single queries of a sparsified model get the keys and values in host memory, and
        with them the pages; all others get them on their device."""
        self._settle_on(key_states.device)
        if self.keys is not self._indexed:
            self.pages.clear()
        keys, values = super().update(key_states.to(HOME), value_states.to(HOME))
        if key_states.shape[-2] == 1 and not self.dense:
            remember_pages(keys, self.pages)
            return keys, values
        return self.on_device(keys, values)

    def on_device(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of `keys` and `values` on the device, with what is remembered of them."""
        assert self._device is not None
        if self._device != HOME:
            keys, values = keys.to(self._device), values.to(self._device)
            remember_index(keys, self.slot)
            remember_index(values, self.slot)
            if self._value_sum is not None and not self.dense:
                remember_value_sum(values, self._value_sum.to(self._device))
        return keys, values

    def adopt(self, layer: Any) -> None:
        """As in the parent; keys and values come to host memory."""
        if layer.is_initialized:
            self._settle_on(device_of(layer))
        super().adopt(layer)

    def _fill(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super()._fill(keys.to(HOME), values.to(HOME))

    def _settle_on(self, device: torch.device) -> None:
        """Remember where the queries are."""
        self._device = self.slot.device = device
        self.pinned = device.type == "cuda"

    def _empty(self) -> OffloadedLayer:
        return OffloadedLayer(self.pages.capacity)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"pages": HotPages(self.pages.capacity)}

    def _change_index(self, change: Callable[[], None], rows: torch.Tensor | None) -> None:
        super()._change_index(change, rows)
        self.pages.clear()

    def reset(self) -> None:
        """Forget all tokens and give the memory back, on the device too."""
        self.pages.clear()
        super().reset()

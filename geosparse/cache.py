"""A key/value cache that grows in place: what a sparsified model decodes from.

transformers' dynamic cache concatenates all keys and values anew at every step. Here each full-attention layer owns a
buffer with room to spare; a step writes only its own tokens. Sliding-window layers keep transformers' own layer, whose
memory is bounded anyway.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from .ops import IndexSlot, memory, remember_index, remember_value_sum
from .runtime.cached_keys import serve_dense
from .runtime.receipt import Receipt

# Room to spare, as a fraction: each token is copied about 1 / SPARE times in all, and memory is at most 1 + SPARE.
SPARE = 0.125
LEAST_SPARE = 64


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A DynamicLayer whose `keys` and `values` `[B, Hkv, S, D]` are the filled part of larger buffers.

    The sum of all values is kept up to date and goes with them, so that the centroid tail reads no values that a query
    does not keep.

    Everything else that a cache layer does (crop, reorder, select, repeat, reset) replaces `keys` and
    `values` by other tensors, as in the parent; the next `update` then starts new buffers from them.
    """

    keys: Any
    values: Any

    def __init__(self) -> None:
        super().__init__()
        self.dense = False  # whether a dense model decodes from it
        self.pinned = False  # whether its buffers are page-locked host memory
        self._key_buffer: torch.Tensor | None = None
        self._value_buffer: torch.Tensor | None = None
        self._summed: torch.Tensor | None = None  # the `values` that `_value_sum` is of; not kept up for a dense model
        self._value_sum: torch.Tensor | None = None  # [B, Hkv, Dv] fp64
        self._indexed: torch.Tensor | None = None  # the `keys` that the index is of
        self.slot = self.new_slot()

    def new_slot(self) -> IndexSlot:
        """An empty place for an index."""
        return IndexSlot()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[B, Hkv, T, D]` and return all keys and values, views of the buffers."""
        if not self.is_initialized:
            _initialize(self, key_states, value_states)
        if self.keys is not self._indexed:
            self.slot.index = None
        untouched = self.values is self._summed
        self._key_buffer, self.keys = _append(self._key_buffer, self.keys, key_states, self.pinned)
        self._value_buffer, self.values = _append(self._value_buffer, self.values, value_states, self.pinned)
        self._indexed = self.keys
        if self.dense:
            self._summed = None
            return serve_dense(self.keys), self.values
        remember_index(self.keys, self.slot)
        if untouched and self._value_sum is not None:
            self._value_sum = self._value_sum + value_states.sum(-2, dtype=torch.float64)
        else:
            self._value_sum = self.values.sum(-2, dtype=torch.float64)
        self._summed = self.values
        remember_value_sum(self.values, self._value_sum)
        return self.keys, self.values

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens from the end, as many as transformers' layer says, and the pages that reach into them."""
        self._change_index(lambda: super(GrowingLayer, self).crop(tokens_to_remove), None)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Let batch row i become row `beam_idx[i]` was, index and all."""
        self._change_index(lambda: super(GrowingLayer, self).reorder_cache(beam_idx), beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the batch rows `indices`, index and all."""
        self._change_index(lambda: super(GrowingLayer, self).batch_select_indices(indices), indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch row, index and all."""
        rows = (
            torch.arange(len(self.keys), dtype=torch.int64, device="cpu").repeat_interleave(repeats)
            if self.get_seq_length()
            else None
        )
        self._change_index(lambda: super(GrowingLayer, self).batch_repeat_interleave(repeats), rows)

    def _change_index(self, change: Callable[[], None], rows: torch.Tensor | None) -> None:
        """Let `change` replace the keys and the index follow: cut to their length, with the batch rows `rows`."""
        index = self.slot.index if self.keys is self._indexed else None
        change()
        if not self.get_seq_length():
            index = None  # an empty layer has no batch rows either
        if index is not None:
            index.truncate(self.get_seq_length())
            if rows is not None:
                index.take(rows)
        self.slot.index, self._indexed = index, self.keys

    def reset(self) -> None:
        """Forget all tokens and give the memory back."""
        self._key_buffer = self._value_buffer = self._summed = self._value_sum = self._indexed = None
        self.slot = self.new_slot()
        super().reset()


def _append(
    buffer: torch.Tensor | None, filled: torch.Tensor, states: torch.Tensor, pinned: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`states` behind `filled`: in `buffer` where `filled` is its beginning and there is room, else in a new one."""
    start = filled.shape[-2] if filled.numel() else 0
    stop = start + states.shape[-2]
    fits = buffer is not None and (_begins(buffer, filled) if start else buffer.shape[:2] == states.shape[:2])
    if buffer is None or not fits or stop > buffer.shape[-2]:
        batch, heads, _, dim = states.shape
        # Prompts arrive once: only a cache that has begun to grow needs room.
        spare = max(LEAST_SPARE, int(SPARE * stop)) if start else LEAST_SPARE
        shape = (batch, heads, stop + spare, dim)
        buffer = (
            states.new_empty(shape, pin_memory=True) if pinned else memory.empty(shape, states.dtype, states.device)
        )
        if start:
            buffer[..., :start, :] = filled
    buffer[..., start:stop, :] = states
    return buffer, buffer[..., :stop, :]


def _begins(buffer: torch.Tensor, filled: torch.Tensor) -> bool:
    """Whether `filled` is a view of the first tokens of `buffer`."""
    same_place = filled.data_ptr() == buffer.data_ptr() and filled.stride() == buffer.stride()
    return same_place and filled.shape[:2] == buffer.shape[:2]


def _initialize(layer: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
    """`layer.lazy_initialization`, which asks for the values since transformers 5."""
    asked = len(inspect.signature(layer.lazy_initialization).parameters)
    layer.lazy_initialization(*(keys, values)[:asked])


class SparseCache(DynamicCache):  # type: ignore[misc]
    """A `DynamicCache` whose full-attention layers grow in place.

    A sparsified model makes one by itself. Given to a dense model, it serves dense attention: on the CPU single queries
    go to geosparse's kernel in the place of torch's.
    """

    def __init__(self, config: Any, hot_pages: int | None = None) -> None:
        """Args: the config of the model, which says which layers slide; where keys and values are to live in host
        memory, the pages per layer and KV head that stay on the device, those read last (`offload`)."""
        super().__init__(config=config)
        self.hot_pages = hot_pages
        grow_in_place_(self, dense=True)

    @classmethod
    def from_cache(cls, cache: Cache, config: Any, hot_pages: int | None = None) -> SparseCache:
        """A SparseCache that goes on from a filled `DynamicCache`, which stays as it is."""
        ours = cls(config, hot_pages)
        ours.layers = list(cache.layers)
        grow_in_place_(ours, dense=True)
        return ours


def grow_in_place_(cache: Cache, dense: bool = False) -> None:
    """Let the plain full-attention layers of `cache`, filled or not, grow in place from here on.

    Done to the cache object itself, because `generate` and its callers hold on to the one that they passed in.

    Args:
        cache: Any cache of transformers.
        dense: A dense model decodes from it.
    """
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            ours = cache.layers[index] = _growing_layer(getattr(cache, "hot_pages", None))
            if layer.is_initialized:
                _initialize(ours, layer.keys, layer.values)
                ours.keys, ours.values = layer.keys, layer.values
        if isinstance(cache.layers[index], GrowingLayer):
            cache.layers[index].dense = dense


def _growing_layer(hot_pages: int | None) -> GrowingLayer:
    """A new layer; one that lives in host memory where a number of pages for the device is given."""
    if hot_pages is None:
        return GrowingLayer()
    from .offload import OffloadedLayer

    return OffloadedLayer(hot_pages)


def provide_cache(
    receipt: Receipt, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of a sparsified model: whatever dynamic cache it is about to use grows in place; the `receipt`
    says once which layers of a caller's own cache cannot."""
    cache = kwargs.get("past_key_values")
    if cache is None and kwargs.get("use_cache", getattr(model.config.get_text_config(), "use_cache", True)):
        cache = SparseCache(model.config)
        kwargs = kwargs | {"past_key_values": cache}
    if isinstance(cache, Cache):
        grow_in_place_(cache)
        for place, layer in enumerate(cache.layers):
            if not isinstance(layer, GrowingLayer) and not getattr(layer, "is_sliding", False):
                why = f"a {type(layer).__name__} of the caller's own cache neither grows in place nor keeps an index"
                receipt.note(place, "slower", why)
    return args, kwargs

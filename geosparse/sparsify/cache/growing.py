"""A layer of a key/value cache that grows in place.

transformers' dynamic cache concatenates all keys and values anew at every step. Here a full-attention layer owns a
buffer with room to spare; a step writes only its own tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from ...ops import IndexSlot, huge_pages, needs_gradient, remember_index, remember_value_sum
from ...ops.modes import lasting
from .dense_keys import serve_dense

# Room to spare, as a fraction: each token is copied about 1 / SPARE times in all, and memory is at most 1 + SPARE.
SPARE = 0.125
LEAST_SPARE = 64


# What a stored layer does without: buffers with room to spare, and what is known of tensors by their identity.
_UNSTORED = ("_key_buffer", "_value_buffer", "_summed", "_value_sum", "_indexed", "_averaged", "slot")


class GrowingLayer(DynamicLayer):  # type: ignore[misc]
    """A DynamicLayer whose `keys` and `values` `[B, Hkv, S, D]` are the filled part of larger buffers.

    The sum of all values is kept up to date and goes with them, so that the centroid tail reads no values that a query
    does not keep.

    Everything else that a cache layer does (crop, reorder, select, repeat, reset) replaces `keys` and
    `values` by other tensors, as in the parent; the next `update` then starts new buffers from them. With a gradient an
    update concatenates, as in the parent: nothing that the backward pass reads is written over.

    Copies (`copy`, `deepcopy`, `pickle`) hold the filled part and the index in memory of their own, and go on alone.
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
        self._averaged: torch.Tensor | None = None  # the `values` that the page means are of
        self.slot = self.new_slot()

    def new_slot(self) -> IndexSlot:
        """An empty place for an index."""
        return IndexSlot()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `[B, Hkv, T, D]` and return all keys and values, views of the buffers."""
        if not self.is_initialized:
            initialize(self, key_states, value_states)
        if self.keys is not self._indexed:
            self.slot.clear()
        if self.values is not self._averaged:
            self.slot.means = None
        untouched = self.values is self._summed
        # A dense model may keep the keys for its backward pass even where it has no gradient of theirs.
        graph = torch.is_grad_enabled() and (
            self.dense or needs_gradient(key_states, value_states, self.keys, self.values)
        )
        if graph:
            self._key_buffer = self._value_buffer = None
            self.keys = torch.cat([self.keys, key_states], dim=-2)
            self.values = torch.cat([self.values, value_states], dim=-2)
        else:
            self._key_buffer, self.keys = _append(self._key_buffer, self.keys, key_states, self.pinned)
            self._value_buffer, self.values = _append(self._value_buffer, self.values, value_states, self.pinned)
        self._indexed, self._averaged = self.keys, self.values
        if self.dense:
            self._summed = None
            return serve_dense(self.keys), self.values
        remember_index(self.keys, self.slot)
        remember_index(self.values, self.slot)
        if graph:
            self._summed = self._value_sum = None
            return self.keys, self.values
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
        known = self.keys is self._indexed
        if self.values is not self._averaged:
            self.slot.means = None
        change()
        if not known or not self.get_seq_length():  # an empty layer has no batch rows either
            self.slot.clear()
        for pages in self.slot.held:
            pages.truncate(self.get_seq_length())
            if rows is not None:
                pages.take(rows)
        self._indexed, self._averaged = self.keys, self.values

    def adopt(self, layer: Any) -> None:
        """Fill this layer, which is empty, with the tokens of a full-attention layer that stays as it is.

        Keys and values are copied, with their gradient where they have one; an index and a sum of values, where `layer`
        has them.
        """
        if not layer.is_initialized:
            return
        device = device_of(layer)
        self._fill(layer.keys.to(device), layer.values.to(device))
        if isinstance(layer, GrowingLayer):
            self._take_pages(layer.current_pages())
            if layer.values is layer._summed:
                self._summed, self._value_sum = self.values, layer._value_sum

    def _fill(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        initialize(self, keys, values)
        if not keys.numel():
            return
        if needs_gradient(keys, values):
            self.keys, self.values = keys.clone(), values.clone()
        else:
            self._key_buffer, self.keys = _append(None, self.keys, keys, self.pinned)
            self._value_buffer, self.values = _append(None, self.values, values, self.pinned)

    def current_pages(self) -> IndexSlot:
        """A copy of what is known of the pages of these keys and values."""
        pages = self.slot.copy() if self.keys is self._indexed else IndexSlot()
        if self.values is not self._averaged:
            pages.means = None
        return pages

    def _take_pages(self, pages: IndexSlot) -> None:
        """Take over what is known of the pages of the present keys and values."""
        self.slot.index, self.slot.means = pages.index, pages.means
        self._indexed, self._averaged = self.keys, self.values

    def _empty(self) -> GrowingLayer:
        """A layer of the same kind without a token."""
        return type(self)()

    def __copy__(self) -> GrowingLayer:
        twin = self._empty()
        twin.dense = self.dense
        twin.adopt(self)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> GrowingLayer:
        return self.__copy__()

    def __getstate__(self) -> dict[str, Any]:
        """What is stored: the filled part, without a graph, and what is known of its pages."""
        state = {name: value for name, value in vars(self).items() if name not in _UNSTORED}
        if self.is_initialized:
            for name in ("keys", "values"):
                state[name] = state[name].detach().clone(memory_format=torch.contiguous_format)
        return state | {"of_pages": self.current_pages()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pages = state.pop("of_pages")
        self.__dict__.update(dict.fromkeys(_UNSTORED) | state)
        self.slot = self.new_slot()
        self._take_pages(pages)

    def reset(self) -> None:
        """Forget all tokens and give the memory back."""
        self._key_buffer = self._value_buffer = self._summed = self._value_sum = self._indexed = self._averaged = None
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
        if torch.is_inference_mode_enabled():  # the next token may come outside of it
            with lasting():
                buffer = _room(shape, states, pinned)
        else:
            buffer = _room(shape, states, pinned)
        if start:
            buffer[..., :start, :] = filled
    buffer[..., start:stop, :] = states
    return buffer, buffer[..., :stop, :]


def _room(shape: tuple[int, ...], like: torch.Tensor, pinned: bool) -> torch.Tensor:
    """A buffer without content."""
    if pinned:
        return torch.empty(shape, dtype=like.dtype, device=like.device, pin_memory=True)
    return huge_pages.empty(shape, like.dtype, like.device)


def device_of(layer: Any) -> torch.device:
    """Where the queries of a cache layer are, wherever its keys are."""
    device: torch.device = getattr(layer, "_device", None) or layer.device
    return device


def _begins(buffer: torch.Tensor, filled: torch.Tensor) -> bool:
    """Whether `filled` is a view of the first tokens of `buffer`."""
    same_place = filled.data_ptr() == buffer.data_ptr() and filled.stride() == buffer.stride()
    return same_place and filled.shape[:2] == buffer.shape[:2]


def initialize(layer: Any, keys: torch.Tensor, values: torch.Tensor) -> None:
    """`layer.lazy_initialization`, which asks for the values since transformers 5."""
    asked = len(inspect.signature(layer.lazy_initialization).parameters)
    layer.lazy_initialization(*(keys, values)[:asked])

"""The key/value cache that a sparsified model decodes from, and how a model comes to use it.

Full-attention layers grow in place. Sliding-window layers keep transformers' own layer, whose memory is bounded anyway.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from ...errors import GeosparseError
from ...hf.layers import probe_of
from ...hf.modes import evaluating
from ...hf.signature import Remembered
from ..receipt import Receipt
from .growing import GrowingLayer, initialize
from .offloaded import OffloadedLayer


class SparseCache(DynamicCache):  # type: ignore[misc]
    """A `DynamicCache` whose full-attention layers grow in place.

    A sparsified model makes one by itself. Given to a dense model, it serves dense attention: on the CPU single queries
    go to geosparse's kernel in the place of torch's.
    """

    def __init__(self, config: Any, hot_pages: int | None = None) -> None:
        """An empty cache.

        Args:
            config: Of the model; it says which layers slide.
            hot_pages: Keys and values live in host memory, and as many pages per layer and KV head, those read last,
                stay on the device (see `offloaded`); None: all stay on the device.
        """
        super().__init__(config=config)
        self.hot_pages = hot_pages
        grow_in_place_(self, dense=True)

    @classmethod
    def from_cache(cls, cache: Cache, config: Any, hot_pages: int | None = None) -> SparseCache:
        """A SparseCache that goes on from a filled cache of transformers, or of this class, which stays as it is.

        Both can be continued, each on its own: every layer is copied, with its index and whatever state it has, so that
        memory for the tokens is needed twice. What has a gradient keeps it.

        Raises:
            GeosparseError: `cache` is no cache of transformers, or an encoder-decoder's.
        """
        if not isinstance(cache, Cache) or hasattr(cache, "self_attention_cache"):
            raise GeosparseError(
                f"SparseCache.from_cache takes a decoder's cache of transformers, found {type(cache).__name__}: "
                "give the past_key_values that the model returned."
            )
        ours = cls(config, hot_pages)
        for place, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer or isinstance(layer, GrowingLayer):
                mine = _growing_layer(hot_pages)
                mine.adopt(layer)
            else:
                mine = _copied(layer)
            ours.layers[place : place + 1] = [mine]
        grow_in_place_(ours, dense=True)
        return ours

    def __copy__(self) -> SparseCache:
        """As a deep copy: two caches that share layers would write over each other's tokens."""
        return copy.deepcopy(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseCache:
        twin = memo[id(self)] = type(self).__new__(type(self))
        others = {name: value for name, value in vars(self).items() if name != "layers"}
        twin.__dict__.update(copy.deepcopy(others, memo), layers=[_copied(layer) for layer in self.layers])
        return twin


def _copied(layer: Any) -> Any:
    """A deep copy of any cache layer: of its tensors only what they show, and with their gradient."""
    if isinstance(layer, GrowingLayer):
        return copy.copy(layer)
    return copy.deepcopy(layer, {id(tensor): tensor.clone() for tensor in _tensors(vars(layer))})


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


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
                initialize(ours, layer.keys, layer.values)
                ours.keys, ours.values = layer.keys, layer.values
        if isinstance(cache.layers[index], GrowingLayer):
            cache.layers[index].dense = dense


def _growing_layer(hot_pages: int | None) -> GrowingLayer:
    """A new layer; one that lives in host memory where a number of pages for the device is given."""
    return GrowingLayer() if hot_pages is None else OffloadedLayer(hot_pages)


def _takes_our_cache(model: Any) -> bool:
    """Whether a dense model goes on from a SparseCache as it does from the cache that it makes itself."""
    tokens = probe_of(model)[None, :4]
    results = []
    with torch.no_grad(), evaluating(model):
        for cache in (None, SparseCache(model.config)):
            try:
                output = model(tokens[:, :2], past_key_values=cache, use_cache=True)
                output = model(tokens[:, 2:], past_key_values=output.past_key_values, use_cache=True)
            except Exception:  # noqa: BLE001 - some demand a class of their own, others fields that only theirs has
                return False
            results.append(output.logits.float())
    own, ours = results
    return bool((own - ours).abs().max() <= 0.05 * own.abs().max())


takes_our_cache = Remembered(_takes_our_cache)
"""The same, once for each state of a model: one that does not makes its cache itself, and that is left as it is."""


def provide_cache(
    receipt: Receipt, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], ours: bool = True
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Forward pre-hook of a sparsified model: whatever dynamic cache it is about to use grows in place; the `receipt`
    says once which layers of a caller's own cache cannot. Without `ours` a model makes its cache itself."""
    asked, given = kwargs, args
    places = _places(model) if len(args) > 1 else {}
    if places:
        asked = kwargs | {name: args[place] for name, place in places.items() if place < len(args)}
    cache = asked.get("past_key_values")
    if ours and cache is None and _uses_cache(model, asked.get("use_cache")):
        cache = SparseCache(model.config)
        place = places.get("past_key_values", len(args))
        if place < len(args):
            given = (*args[:place], cache, *args[place + 1 :])
        else:
            kwargs = kwargs | {"past_key_values": cache}
    if isinstance(cache, Cache):
        grow_in_place_(cache)
        for place, layer in enumerate(cache.layers):
            if not isinstance(layer, GrowingLayer) and not getattr(layer, "is_sliding", False):
                why = f"a {type(layer).__name__} of the caller's own cache neither grows in place nor keeps an index"
                receipt.note(place, "slower", why)
    return given, kwargs


def _uses_cache(model: Any, asked: bool | None) -> bool:
    """Whether `model` makes a cache where it is given none; None is as good as not asked."""
    return bool(getattr(model.config.get_text_config(), "use_cache", True) if asked is None else asked)


def _places(model: Any) -> dict[str, int]:
    """Where a positional call of `model` gives the arguments that concern the cache."""
    names = list(inspect.signature(model.forward).parameters)
    return {name: names.index(name) for name in ("past_key_values", "use_cache") if name in names}

"""What is read: token windows of a given length, and the cache of a prefix that dense attention read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.sparsify.cache.sparse_cache import SparseCache
from geosparse.utils.provenance import device_name, versions


def windows(tokenizer: Any, text: str, length: int, count: int) -> torch.Tensor:
    """Exactly `count` token windows `[count, length]` of a text.

    Raises:
        GeosparseError: The text is too short.
    """
    taken = gs.token_windows(tokenizer, gs.load_texts(text), length, count)
    if len(taken) < count:
        raise gs.GeosparseError(
            f"{text} holds {len(taken)} windows of {length} tokens, not {count}: give a longer text or fewer windows."
        )
    return taken


def dense_prefix(model: Any, ids: torch.Tensor) -> SparseCache:
    """The cache of `ids` `[1, T]` read by dense attention."""
    cache = SparseCache(model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def about(schema: str, model: str, text: str) -> dict[str, Any]:
    """What was measured, where."""
    return {
        "schema": schema,
        "model": Path(model).name if Path(model).exists() else model,
        "text": Path(text).name,
        "device": device_name(),
        "provenance": versions(),
    }

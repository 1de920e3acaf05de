"""Scoring through the cache: several tokens per call, which must equal one by one."""

from __future__ import annotations

from typing import Any

import torch


def token_losses(
    model: Any, ids: torch.Tensor, cache: Any, chunk: int, start: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the tokens that follow each token of `ids` but the last, read through `cache`, which grows.

    Args:
        model: A causal language model, dense or sparsified.
        ids: `[1, T]`, T >= 2.
        cache: What came before; None: nothing.
        chunk: Tokens per call.
        start: Position of `ids[0, 0]` where the cache holds fewer tokens than were read; None: as many as it holds.

    Returns:
        `[T - 1]` fp32 nats, and bool `[T - 1]`: the next token was the likeliest, both on the CPU.
    """
    losses, hits = [], []
    device = model.get_input_embeddings().weight.device
    inputs, targets = ids[:, :-1].to(device), ids[0, 1:].to(device)
    if cache is None:
        from geosparse.sparsify.cache.sparse_cache import SparseCache

        cache = SparseCache(model.config)
    with torch.no_grad():
        for begin in range(0, inputs.shape[1], chunk):
            part = inputs[:, begin : begin + chunk]
            where = {} if start is None else {"position_ids": _positions(start + begin, part)}
            logits = model(part, past_key_values=cache, use_cache=True, **where).logits[0].float()
            goal = targets[begin : begin + chunk].to(logits.device)
            losses.append(torch.nn.functional.cross_entropy(logits, goal, reduction="none").cpu())
            hits.append((logits.argmax(-1) == goal).cpu())
    return torch.cat(losses), torch.cat(hits)


def _positions(start: int, part: torch.Tensor) -> torch.Tensor:
    return torch.arange(start, start + part.shape[1], device=part.device, dtype=torch.int64)[None]


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values that a cache holds, buffers beside them left out."""
    total = 0
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            if isinstance(tensor, torch.Tensor):
                total += tensor.numel() * tensor.element_size()
        index = getattr(getattr(layer, "slot", None), "index", None)
        total += index.bytes() if index is not None else 0
    return total

"""Selectors: which N tokens a head keeps. One file each, all of the same shape; plain PyTorch, the kernels' truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..spec import INDEXED, Selector, Selectors, per_head
from .lowbit import lowbit
from .paged import paged
from .paged_lowbit import paged_lowbit
from .sink_recent import sink_count, sink_recent
from .topn import topn
from .view import Choice, Sight

CHOOSE: dict[Selector, Callable[..., Choice]] = {
    "topn": topn,
    "lowbit": lowbit,
    "paged": paged,
    "paged+lowbit": paged_lowbit,
    "sink_recent": sink_recent,
}
SHARING: frozenset[Selector] = frozenset({"topn", "lowbit"})  # those that know shared selections


def needs_index(selectors: Selectors) -> bool:
    """Whether any of `selectors` reads a KeyIndex."""
    words = {selectors} if isinstance(selectors, str) else set(selectors)
    return bool(words & INDEXED)


def reads_codes(selectors: Selectors) -> bool:
    """Whether any of `selectors` reads the coded keys of the index, not only its bounds."""
    words = {selectors} if isinstance(selectors, str) else set(selectors)
    return bool(words & {"lowbit", "paged+lowbit"})


def choose(sight: Sight, selectors: Selectors, kv_heads: int = 1, share_kv: bool = False) -> Choice:
    """The selection of every head by its own selector.

    Args:
        sight: The queries and what they may see.
        selectors: One for all heads, or one per query head.
        kv_heads: KV heads, for `share_kv`.
        share_kv: The heads of one KV group rank tokens by the sum of their attention weights, and so, with equal
            budgets, keep the same ones.
    """
    words = per_head(selectors, sight.scores.shape[1])
    distinct = sorted(set(words))
    choices = [CHOOSE[word](sight, _shared(sight, word, kv_heads) if share_kv else None) for word in distinct]
    if len(choices) == 1:
        return choices[0]
    keep, kept, estimate = (part.clone() for part in choices[0])
    for word, choice in zip(distinct[1:], choices[1:], strict=True):
        heads = [head for head, other in enumerate(words) if other == word]
        keep[:, heads], kept[:, heads] = choice.keep[:, heads], choice.kept[:, heads]
        estimate[:, heads] = choice.estimate[:, heads]
    return Choice(keep, kept, estimate)


def _shared(sight: Sight, selector: Selector, kv_heads: int) -> torch.Tensor | None:
    """Log of the group's summed attention weights, `[B, Hq, t, s]`; None for selectors that rank nothing."""
    if selector not in SHARING:
        return None
    logits = (sight.coarse if selector == "lowbit" else sight.scores).detach()
    batch, heads, queries, keys = logits.shape
    weights = logits.softmax(-1).nan_to_num(0.0).view(batch, kv_heads, heads // kv_heads, queries, keys)
    together: torch.Tensor = weights.sum(2, keepdim=True).log().expand(weights.shape).flatten(1, 2)
    floor = torch.finfo(together.dtype).min
    return together.clamp_min(floor).masked_fill(~sight.seen, -torch.inf)


__all__: Sequence[str] = ["CHOOSE", "SHARING", "Choice", "Sight", "choose", "needs_index", "reads_codes", "sink_count"]

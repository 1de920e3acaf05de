"""The selection of every head by its own selector."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...errors import GeosparseError
from ..topn import top_n
from . import SELECTORS
from .rule import SelectorRule
from .view import Choice, SelectorView


def choose(view: SelectorView, selectors: str | Sequence[str], kv_heads: int = 1, share_kv: bool = False) -> Choice:
    """The selection of every head by its own selector.

    Args:
        view: The queries and what they may see.
        selectors: A name in SELECTORS for all heads, or one per query head.
        kv_heads: KV heads, for `share_kv`.
        share_kv: The heads of one KV group rank tokens by the sum of their attention weights, and so, with equal
            budgets, keep the same ones.

    Raises:
        GeosparseError: A selector of another package returned something else than a choice of these tokens.
    """
    heads = view.scores.shape[1]
    names = [selectors] * heads if isinstance(selectors, str) else list(selectors)
    distinct = sorted(set(names))
    choices = [_choice(view, SELECTORS[name], kv_heads if share_kv else None) for name in distinct]
    if len(choices) == 1:
        return choices[0]
    keep, kept, estimate = (part.clone() for part in choices[0])
    for name, choice in zip(distinct[1:], choices[1:], strict=True):
        own = [head for head, other in enumerate(names) if other == name]
        keep[:, own], kept[:, own] = choice.keep[:, own], choice.kept[:, own]
        estimate[:, own] = choice.estimate[:, own]
    return Choice(keep, kept, estimate)


def _choice(view: SelectorView, rule: SelectorRule, kv_heads: int | None) -> Choice:
    """What one selector keeps of all heads; of those of each of `kv_heads` groups together, where it can."""
    if kv_heads is not None and rule.ranks is not None:
        scores: torch.Tensor = getattr(view, rule.ranks)
        return Choice(*top_n(_shared(view, scores, kv_heads), view.budgets), scores)
    choice = rule.choose(view)
    if not isinstance(choice, Choice) or choice.keep.shape != view.scores.shape:
        raise GeosparseError(
            f"The selector {rule.name!r} returned no Choice with `keep` {list(view.scores.shape)}: fix it, or choose "
            "another selector."
        )
    return choice


def _shared(view: SelectorView, scores: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Log of the group's summed attention weights by `scores`, `[B, Hq, t, s]`."""
    logits = scores.detach()
    batch, heads, queries, keys = logits.shape
    weights = logits.softmax(-1).nan_to_num(0.0).view(batch, kv_heads, heads // kv_heads, queries, keys)
    together: torch.Tensor = weights.sum(2, keepdim=True).log().expand(weights.shape).flatten(1, 2)
    floor = torch.finfo(together.dtype).min
    return together.clamp_min(floor).masked_fill(~view.seen, -torch.inf)

"""One query per row over a cache: which stages a selector takes, and what goes between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ..selectors import EXACT, SELECTORS, SelectorRule
from ..spec import Selectors, Tails, per_head
from ..tails import TailShares, shares_of
from . import operators, page_sums, stages


class Keys(NamedTuple):
    """What is visible of a cache, and what is known of it; everything on the device.

    Attributes:
        key: `[B, Hkv, S, D]`; S is the capacity, places behind `length` are never read.
        value: `[B, Hkv, S, Dv]`.
        first: int32 `[B]`, the first visible key of each row, where its pages start.
        length: int32 `[B]`, the one behind the last.
        low, high, codes: Of a KeyIndex of 4 bits; None where no selector reads it.
        value_sum: `[B, Hkv, Dv]`, of the visible values; None where no tail needs their mean.
        means: `[B, Hkv, P, Dv]` fp16, of the values of complete pages; None where no tail gives to pages.
    """

    key: torch.Tensor
    value: torch.Tensor
    first: torch.Tensor
    length: torch.Tensor
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    value_sum: torch.Tensor | None = None
    means: torch.Tensor | None = None


class Pass(NamedTuple):
    """The heads of one layer that share a selector.

    Attributes:
        rule: Of their selector.
        served: int32 `[Hq]`, 1 for these heads.
        tails: fp32 `[Hq, 4]`, the shares of all heads' tails.
        mass: Whether a tail of theirs needs the mass of what is not kept.
        mean: Whether a tail of theirs gives of it to the mean of the visible values.
        even: Whether a tail of theirs gives of it to the kept tokens in equal parts.
        paged: Whether a tail of theirs gives of it to pages.
    """

    rule: SelectorRule
    served: torch.Tensor
    tails: torch.Tensor
    mass: bool
    mean: bool
    even: bool
    paged: bool


def table_of(shares: Sequence[TailShares], device: torch.device) -> torch.Tensor:
    """The tails of the heads as kernels read them, fp32 `[Hq, 4]`; made on the CPU, which is faster than on a GPU."""
    return torch.tensor(shares, dtype=torch.float32, device="cpu").to(device)


@lru_cache(maxsize=4096)
def passes_of(heads: int, tail: Tails, selector: Selectors, device: torch.device) -> tuple[Pass, ...]:
    """The passes of a layer whose heads have these tails and selectors (one or a tuple of them)."""
    tails, words = [shares_of(each) for each in per_head(tail, heads)], per_head(selector, heads)
    table = table_of(tails, device)
    found = []
    for word in sorted(set(words)):
        served = [other == word for other in words]
        own = [shares for shares, mine in zip(tails, served, strict=True) if mine]
        found.append(
            Pass(
                SELECTORS[word],
                torch.tensor(served, dtype=torch.int32, device="cpu").to(device),
                table,
                mass=not all(shares.renormalize for shares in own),
                mean=any(shares.mean for shares in own),
                even=any(shares.kept for shares in own),
                paged=any(shares.pages for shares in own),
            )
        )
    return tuple(found)


def decode(
    query: torch.Tensor,
    keys: Keys,
    budgets: torch.Tensor,
    passes: Sequence[Pass],
    scaling: float,
    softcap: float | None = None,
    sink: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sparse attention of one query per row; nothing in it waits for the device.

    Args:
        query: `[B, Hq, D]`.
        keys: What it attends to.
        budgets: int32 `[B or 1, Hq]`, contiguous.
        passes: From `passes_of`.
        scaling, softcap: Of the logits.
        sink: `[Hq]` logits of a token that has no value.

    Returns:
        `[B, Hq, Dv]` in the dtype of `query`, and the tokens each head kept, int32 `[B, Hq]`.
    """
    results = [_serve(query, keys, budgets, each, scaling, softcap, sink) for each in passes]
    output, kept = results[0]
    for each, (other, count) in zip(passes[1:], results[1:], strict=True):
        mine = each.served.bool()
        output, kept = torch.where(mine[:, None], other, output), torch.where(mine, count, kept)
    return output, kept


def dense(
    query: torch.Tensor, keys: Keys, scaling: float, softcap: float | None = None, sink: torch.Tensor | None = None
) -> torch.Tensor:
    """Dense attention `[B, Hq, Dv]` by the same kernel, over every visible token."""
    tails = passes_of(query.shape[1], "drop", EXACT, query.device)[0].tails
    run = operators.operator(stages.attend, query)
    output: torch.Tensor = run(query, keys.key, keys.value, keys.first, keys.length, tails, scaling, softcap, sink)[0]
    return output


def _serve(
    query: torch.Tensor,
    keys: Keys,
    budgets: torch.Tensor,
    served: Pass,
    scaling: float,
    softcap: float | None,
    sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`decode` of one pass."""
    rows, logit = (keys.first, keys.length), (scaling, softcap)
    run = {stage: operators.operator(stage, query) for stage in operators.STAGES}
    kv_heads, capacity = keys.key.shape[1:3]
    rule = served.rule
    coded = (keys.low, keys.high, keys.codes) if rule.coded else (None, None, None)
    value_sum = keys.value_sum if served.mean else None
    pages_of_rest: tuple[torch.Tensor | None, ...] = (None, None, None, None)
    found: dict[str, Any]
    if rule.oversample is not None:
        bounds = run[stages.score_pages](query, keys.low, keys.high, *rows, capacity, *logit, served.mass)
        highest = run[stages.select](bounds[0], budgets, *rows, kv_heads, rule.oversample)
        pages, words, count, far = run[stages.list_pages](bounds, highest, *rows, served.served, kv_heads)
        pages_of_rest = bounds, highest, pages, count
        scores = run[stages.score_tokens](query, keys.key, *rows, *logit, *coded, pages, words, count)
        chosen = run[stages.select](scores, budgets, *rows, kv_heads, 0, count)
        found = {"entries": pages, "words": words, "count": count, "scores": scores, "chosen": chosen}
        found["known"] = not rule.coded
    else:
        scores = chosen = None
        if rule.ranks is not None or served.mass:
            scores = run[stages.score_tokens](query, keys.key, *rows, *logit, *coded)
        if rule.ranks is not None:
            chosen = run[stages.select](scores, budgets, *rows, kv_heads)
        tokens, words, count, far = run[stages.list_tokens](
            scores, chosen, *rows, budgets, served.served, kv_heads, capacity, served.mass
        )
        exact = scores is not None and not rule.coded
        found = {"entries": tokens, "words": words, "count": count, "scores": scores if exact else None, "known": exact}
    far = far if served.mass else None
    if served.paged:
        found["spread"], found["spread_max"] = run[page_sums.spread_pages](
            scores, keys.value, keys.means, *rows, served.tails, budgets, chosen, *pages_of_rest
        )
    result: tuple[torch.Tensor, torch.Tensor] = run[stages.attend](
        query, keys.key, keys.value, *rows, served.tails, *logit, sink, value_sum, far=far, even=served.even, **found
    )
    return result

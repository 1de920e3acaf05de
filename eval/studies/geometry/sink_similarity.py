"""Does a head's recall go with how similar the sink is to what the head selects?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from geosparse.geometry.separation import rank_of, selection_order, separation
from geosparse.geometry.sinks import find_sinks

from ...statistics import bootstrap, spearman

BUDGETS = (4, 16, 64)


class Observed(NamedTuple):
    """Of one layer and window: recall and sink similarity, `[Hq, Q, G]`; NaN without sinks or with too few tokens."""

    recall: torch.Tensor
    similarity: torch.Tensor


def observe(alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, budgets: Sequence[int] = BUDGETS) -> Observed:
    """Recall of the N highest-ranked tokens, and the cosine of the mean sink value with the sum of the selected
    contributions that are no sinks, query by query.

    Args:
        alpha: `[Hq, Q, L]`.
        value: `[Hkv, L, D]`.
        seen: `[Q, L]` bool.
        budgets: G values of N.
    """
    group = alpha.shape[0] // value.shape[0]
    sinks = find_sinks(alpha, value, seen).repeat_interleave(group, dim=0)
    value = value.repeat_interleave(group, dim=0)
    visible = seen.expand(alpha.shape)
    order = selection_order(alpha, visible)
    recall = separation(alpha, value, order, visible, budgets).recall
    direction = (value * sinks.unsqueeze(-1)).sum(-2, keepdim=True) / sinks.sum(-1).view(-1, 1, 1)
    free, rank = alpha * ~sinks.unsqueeze(1), rank_of(order)
    similarity = [torch.cosine_similarity((free * (rank < n)) @ value, direction, dim=-1) for n in budgets]
    return Observed(recall, torch.stack(similarity, -1))


def correlate(observed: Sequence[Sequence[Observed]], mean_similarity: torch.Tensor, seed: int) -> dict[str, Any]:
    """Spearman's correlation of recall and sink similarity with 95 % bootstrap intervals.

    Args:
        observed: Per window, per layer.
        mean_similarity: `[layers, Hq]`, the sink's mean cosine with all other tokens (A2).
        seed: Of the resampling.

    Returns:
        `over_heads`: per N, mean recall of a head against `mean_similarity`, resampling heads. `by_layer`: per N and
        layer, over queries, resampling (window, head) pairs, None where a layer has no sinks.
    """
    layers = [
        Observed(*(torch.cat([window[layer][part] for window in observed]) for part in (0, 1)))
        for layer in range(len(observed[0]))
    ]
    over_heads, by_layer = [], []
    for column, budget in enumerate(BUDGETS):
        recall = torch.stack([torch.stack([part.recall[..., column] for part in w]).nanmean(-1) for w in observed])
        of_head, similarity = recall.nanmean(0).flatten(), mean_similarity.flatten()
        interval = bootstrap(lambda r, a=of_head, b=similarity: spearman(a[r], b[r]), len(of_head), seed)  # type: ignore[misc]
        over_heads.append({"n_keep": budget, "rho": spearman(of_head, similarity), "interval": interval})
        rows = [_clustered(part.recall[..., column], part.similarity[..., column], seed) for part in layers]
        by_layer.append({"n_keep": budget, "layers": rows})
    return {"over_heads": over_heads, "by_layer": by_layer}


def _clustered(recall: torch.Tensor, similarity: torch.Tensor, seed: int) -> dict[str, Any] | None:
    """Over `[clusters, Q]`, resampling clusters."""
    rho = spearman(recall.flatten(), similarity.flatten())
    if rho != rho:
        return None
    interval = bootstrap(lambda r: spearman(recall[r].flatten(), similarity[r].flatten()), len(recall), seed)
    return {"rho": rho, "interval": interval}

"""Exact top-N selection over scores: which tokens a head keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import GeosparseError


def top_n(scores: torch.Tensor, n_keep: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Select, per query head, the N highest-scored visible tokens; ties go to the smaller index.

    Args:
        scores: `[B, Hq, T, S]`, floating; -inf marks a token that the query does not see.
        n_keep: `Hq` integers >= 1; where N exceeds the visible tokens, all of them are kept.

    Returns:
        `keep` `[B, Hq, T, S]` of 0 and 1 in the dtype of `scores`, and `kept` `[B, Hq, T]`, its row sums.

    Raises:
        GeosparseError: The number of budgets differs from the number of heads, or a budget is below 1.
    """
    if len(n_keep) != scores.shape[1]:
        raise GeosparseError(f"Expected {scores.shape[1]} budgets (one per query head), found {len(n_keep)}.")
    if min(n_keep) < 1:
        raise GeosparseError(f"Every head keeps at least 1 token, found a budget of {min(n_keep)}.")
    keep = torch.empty_like(scores)
    for n in sorted(set(n_keep)):
        heads = [head for head, budget in enumerate(n_keep) if budget == n]
        if len(heads) == scores.shape[1]:
            keep = _top_n_equal(scores, n)
        else:
            keep[:, heads] = _top_n_equal(scores[:, heads], n)
    return keep, keep.sum(-1)


def _top_n_equal(scores: torch.Tensor, n: int) -> torch.Tensor:
    """`top_n` for one budget shared by all heads, as a 0/1 tensor like `scores`."""
    visible = scores > -torch.inf
    if n >= scores.shape[-1]:
        return visible.to(scores.dtype)
    threshold = scores.topk(n, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    keep = ((scores >= threshold) & visible).to(scores.dtype)
    tied = keep.sum(-1) > n
    if tied.any():
        keep[tied] = _break_ties(scores[tied], threshold[tied], n).to(scores.dtype)
    return keep


def _break_ties(rows: torch.Tensor, threshold: torch.Tensor, n: int) -> torch.Tensor:
    """Keep all of `rows` `[R, S]` above `threshold` `[R, 1]` and the first few equal to it, `n` in all."""
    above = rows > threshold
    equal = rows == threshold
    room = n - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))

"""Exact top-N selection over scores: which tokens a head keeps."""

from __future__ import annotations

import torch

from ..errors import GeosparseError
from .spec import Keep, keep_tensor

FEW_ROWS = 16


def top_n(scores: torch.Tensor, n_keep: Keep) -> tuple[torch.Tensor, torch.Tensor]:
    """Select, per query head, the N highest-scored visible tokens; ties go to the smaller index.

    Args:
        scores: `[B, Hq, T, S]`, floating; -inf marks a token that the query does not see.
        n_keep: `Hq` integers >= 1, or int64 `[B or 1, Hq, T or 1]`; where N exceeds the visible tokens, all are kept.

    Returns:
        `keep` `[B, Hq, T, S]` of 0 and 1 in the dtype of `scores`, and `kept` `[B, Hq, T]`, its row sums.

    Raises:
        GeosparseError: The number of budgets differs from the number of heads, or a budget is below 1.
    """
    scores = scores.detach()  # what is chosen by comparison has no gradient
    budgets = keep_tensor(n_keep, scores.device)
    if budgets.shape[1] != scores.shape[1]:
        raise GeosparseError(f"Expected {scores.shape[1]} budgets (one per query head), found {budgets.shape[1]}.")
    if int(budgets.min()) < 1:
        raise GeosparseError(f"Every head keeps at least 1 token, found a budget of {int(budgets.min())}.")
    threshold = _thresholds(scores, budgets)
    keep = ((scores >= threshold) & (scores > -torch.inf)).to(scores.dtype)
    kept = keep.sum(-1)
    tied = kept > budgets
    if tied.any():
        rows = tied.nonzero(as_tuple=True)
        room = budgets.expand(kept.shape)[rows].unsqueeze(1)
        keep[rows] = _break_ties(scores[rows], threshold[rows], room).to(scores.dtype)
        kept = keep.sum(-1)
    return keep, kept


def _thresholds(scores: torch.Tensor, budgets: torch.Tensor) -> torch.Tensor:
    """The N-th highest score of each row, `[B, Hq, T, 1]`; -inf where N covers the row."""
    keys = scores.shape[-1]
    places = (budgets.clamp_max(keys) - 1).unsqueeze(-1)
    threshold = torch.full_like(scores[..., :1], -torch.inf)
    if scores.shape[0] * scores.shape[2] <= FEW_ROWS or budgets.shape[-1] > 1:
        # One sorted search: with few rows the number of calls costs, not the work.
        best = scores.topk(int(places.max()) + 1, dim=-1).values
        return best.gather(-1, places.expand_as(threshold))
    per_head = budgets[0, :, 0].tolist()
    for n in sorted(set(per_head)):
        heads = [head for head, budget in enumerate(per_head) if budget == n]
        if n < keys:
            part = scores if len(heads) == len(per_head) else scores[:, heads]
            threshold[:, heads] = part.topk(n, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return threshold


def _break_ties(rows: torch.Tensor, threshold: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Keep all of `rows` `[R, S]` above `threshold` `[R, 1]` and the first few equal to it, `n` `[R, 1]` in all."""
    above = rows > threshold
    equal = rows == threshold
    room = n - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))

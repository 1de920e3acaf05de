"""Exact top-N selection over scores: which tokens a head keeps."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import GeosparseError

FEW_ROWS = 16


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
    threshold = _thresholds(scores, n_keep)
    keep = ((scores >= threshold) & (scores > -torch.inf)).to(scores.dtype)
    kept = keep.sum(-1)
    tied = kept > torch.tensor(n_keep, dtype=kept.dtype, device=kept.device)[None, :, None]
    if tied.any():
        rows = tied.nonzero(as_tuple=True)
        room = torch.tensor(n_keep, device=kept.device)[rows[1], None]
        keep[rows] = _break_ties(scores[rows], threshold[rows], room).to(scores.dtype)
        kept = keep.sum(-1)
    return keep, kept


def _thresholds(scores: torch.Tensor, n_keep: Sequence[int]) -> torch.Tensor:
    """The N-th highest score of each row, `[B, Hq, T, 1]`; -inf where N covers the row."""
    keys = scores.shape[-1]
    threshold = torch.full_like(scores[..., :1], -torch.inf)
    if scores.shape[0] * scores.shape[2] <= FEW_ROWS:
        # One sorted search for all heads: with few rows the number of calls costs, not the work.
        places = torch.tensor([min(n, keys) - 1 for n in n_keep], device=scores.device)
        best = scores.topk(int(places.max()) + 1, dim=-1).values
        return best.gather(-1, places[None, :, None, None].expand_as(threshold))
    for n in sorted(set(n_keep)):
        heads = [head for head, budget in enumerate(n_keep) if budget == n]
        if n < keys:
            part = scores if len(heads) == len(n_keep) else scores[:, heads]
            threshold[:, heads] = part.topk(n, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return threshold


def _break_ties(rows: torch.Tensor, threshold: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
    """Keep all of `rows` `[R, S]` above `threshold` `[R, 1]` and the first few equal to it, `n` `[R, 1]` in all."""
    above = rows > threshold
    equal = rows == threshold
    room = n - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))

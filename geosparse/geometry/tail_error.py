"""What each tail gets wrong when only some tokens are kept: sparse minus dense head output.

Shapes as in `separation`: `alpha` `[..., Q, L]` attention weights, `value` `[..., L, D]`, G budgets N.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

from ..ops import MEAN_FRACTION, Tail
from ..ops.visibility import page_mean_of_first


class TailErrors(NamedTuple):
    """What is kept and what is missed.

    Attributes:
        mass: Kept mass `[..., Q, G]`.
        error: Per tail, output minus dense output `[..., Q, G, D]`.
        parts: `[..., Q, G, 5, D]`: what the kept sum lacks of the dense output, then what a tail adds per unit of each
            of its shares, in the order of `ops.tails.TailShares`. The error of shares c is c @ parts[1:] - parts[0].
    """

    mass: torch.Tensor
    error: dict[Tail, torch.Tensor]
    parts: torch.Tensor


def kept_errors(
    alpha: torch.Tensor,
    value: torch.Tensor,
    keeps: Iterable[tuple[torch.Tensor, torch.Tensor | None]],
    seen: torch.Tensor,
    scores: torch.Tensor | None = None,
    paged: bool = True,
) -> TailErrors:
    """What each tail gets wrong when only some tokens are kept: sparse minus dense head output.

    With z the dense output, s the kept sum, M the kept mass and v_bar the mean visible value (DESIGN section 4):
    drop: s - z; renormalize: s / M - z; centroid: s + (1 - M) v_bar - z; even, with u the plain mean of the kept
    values: s + (1 - M) u - z; a blend: between the last two. Where `alpha` sums to less than 1, the rest is the weight
    of a learned sink, which has no value and is always kept. Where all are kept, no tail errs.

    Args:
        alpha: `[..., Q, L]`.
        value: `[..., L, D]`.
        keeps: Per budget the kept tokens, bool `[..., Q, L]`, and the logits `[..., Q, L]` that the others are believed
            to have, -inf where not visible (the kept mass then is the believed one), or None for the true ones.
        seen: `[..., Q, L]` bool, or broadcastable to it.
        scores: `[..., Q, L]` true logits, -inf where not visible; needed beside believed ones.
        paged: Whether there are pages: every query sees the first keys, and so many; else the part of pages is zero.
    """
    dense = alpha @ value
    weight = seen.to(alpha.dtype)
    visible = weight.sum(-1)
    mean = (weight / visible.unsqueeze(-1).clamp_min(1.0)) @ value
    scores_total: torch.Tensor | float = 0.0
    masses, kept, plain, whole, sinks, pages = [], [], [], [], [], []
    seen = seen.expand(alpha.shape)
    lost = 1 - alpha.sum(-1)
    # What a sum of L rounded weights may miss by itself is no sink, and may be more than all that is kept.
    lost = torch.where(lost > alpha.shape[-1] * torch.finfo(alpha.dtype).eps, lost, 0.0)
    for keep, estimate in keeps:
        selected = alpha * keep
        ratio = torch.ones_like(lost)
        if estimate is not None:
            assert scores is not None
            # exp(logit) summed over all, as it is and as it is believed to be.
            scores_total = scores.logsumexp(-1, keepdim=True)
            believed = torch.where(keep, scores, estimate).logsumexp(-1)
            ratio = (1 / (lost + (1 - lost) * (believed - scores_total.squeeze(-1)).exp())).nan_to_num(1.0)
            selected = selected * ratio.unsqueeze(-1)
        sinks.append(lost * ratio)
        masses.append(selected.sum(-1))
        if paged:
            rest = alpha if estimate is None else (estimate - scores_total).exp() * (1 - lost).unsqueeze(-1)
            rest = (rest * ratio.unsqueeze(-1)).masked_fill(keep, 0.0)
            pages.append(page_mean_of_first(rest, visible.long()) @ value)
        chosen = (keep & seen).to(alpha.dtype)
        count = chosen.sum(-1)
        kept.append(selected @ value)
        plain.append(chosen @ value / count.unsqueeze(-1).clamp_min(1.0))
        whole.append(count >= visible)
    mass, total, sink = torch.stack(masses, -1), torch.stack(kept, -2), torch.stack(sinks, -1)
    missing = (1 - sink - mass).clamp_min(0.0).unsqueeze(-1)
    certain = (mass + sink).clamp_min(torch.finfo(alpha.dtype).tiny).unsqueeze(-1)
    dense, mean = dense.unsqueeze(-2), mean.unsqueeze(-2)
    complete = torch.stack(whole, -1).unsqueeze(-1)
    even = missing * torch.stack(plain, -2)
    further = missing * mean - even  # from the plain mean of the kept values to that of all
    errors: dict[Tail, torch.Tensor] = {"drop": total - dense, "renormalize": total / certain - dense}
    errors |= {tail: total - dense + (even + share * further) for tail, share in MEAN_FRACTION.items()}
    by_page = torch.stack(pages, -2) if paged else torch.zeros_like(total)
    # In the order of `ops.tails.TailShares`: mean, kept, weighted, pages.
    added = (missing * mean, even, missing * total / certain, by_page)
    parts = torch.stack((dense - total, *added), -2).masked_fill(complete.unsqueeze(-1), 0.0)
    return TailErrors(mass, {tail: error.masked_fill(complete, 0.0) for tail, error in errors.items()}, parts)

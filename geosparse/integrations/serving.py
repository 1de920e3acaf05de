"""A plan in the form that a serving backend needs: plain arrays per layer, KV head and query head."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..artifacts.plan import Plan
from ..ops import SELECTORS, TAILS
from ..ops.spec import per_head
from ..ops.tails import shares_of


class BackendPlan(NamedTuple):
    """Arrays `[layers, Hkv, G]` unless said otherwise; query head h is head h % G of KV head h // G."""

    n_keep: torch.Tensor  # int32, tokens kept at `length` visible tokens
    tail: torch.Tensor  # int8, places in `tails`; -1: of its own shares
    tail_shares: torch.Tensor  # float32 [layers, Hkv, G, 4], what becomes of the missing mass: ops.tails.TailShares
    selector: torch.Tensor  # int8, places in `selectors`
    growth: torch.Tensor  # float32, exponents over visible / reference_length; 0: constant
    group_keep: torch.Tensor  # int32 [layers, Hkv], the most that a head of the group keeps
    tails: tuple[str, ...]
    selectors: tuple[str, ...]
    reference_length: int
    share_kv: bool


def backend_plan(plan: Plan, length: int | None = None) -> BackendPlan:
    """The arrays of a plan.

    Args:
        plan: A plan.
        length: Visible tokens at which `n_keep` is taken; by default the plan's reference length.
    """
    model = plan.model
    shape = (model.layers, model.kv_heads, model.heads // model.kv_heads)
    heads = [tail for layer in range(shape[0]) for tail in per_head(plan.tails_of(layer), model.heads)]
    tails = [TAILS.index(tail) if tail in TAILS else -1 for tail in heads]
    growth = (
        torch.zeros(plan.n_keep.shape, dtype=torch.float32, device="cpu")
        if plan.growth is None
        else plan.growth.float()
    )
    n_keep = plan.at(length or plan.reference_length).int().view(shape)
    return BackendPlan(
        n_keep=n_keep,
        tail=torch.tensor(tails, dtype=torch.int8, device="cpu").view(shape),
        tail_shares=torch.tensor(list(map(shares_of, heads)), dtype=torch.float32, device="cpu").view(*shape, -1),
        selector=plan.selector_places.to(torch.int8).view(shape),
        growth=growth.view(shape),
        group_keep=n_keep.amax(-1),
        tails=TAILS,
        selectors=SELECTORS.names,
        reference_length=plan.reference_length,
        share_kv=plan.share_kv,
    )

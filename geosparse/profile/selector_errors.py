"""Selectors as the profiler measures them: which N tokens each keeps, and what it believes the others weigh.

The rules themselves are those of `ops.selectors`; here one ranking serves all budgets where a rule allows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..geometry.separation import rank_of, selection_order
from ..ops import Terms
from ..ops.key_index import PAGE, KeyIndex
from ..ops.selectors import EXACT, SELECTORS, SelectorRule, SelectorView, choose
from ..ops.torch_chunked import logit_of


@dataclass(frozen=True)
class Scored:
    """The queries of some heads and what they see: all that a selector may look at.

    Attributes:
        query: `[Hq, Q, D]`.
        key: `[Hkv, L, D]`.
        scores: `[Hq, Q, L]` fp32 logits, -inf where a token is not visible.
        seen: `[Q, L]` bool.
        terms: Of the logits.
        index: Of `key` and perhaps further tokens; None where the first visible token moves with the query, so that
            there are no pages: selectors that read an index are then exact.
    """

    query: torch.Tensor
    key: torch.Tensor
    scores: torch.Tensor
    seen: torch.Tensor
    terms: Terms = field(default_factory=lambda: Terms(1.0, None, None))
    index: KeyIndex | None = None

    def view(self, budget: int) -> SelectorView:
        """The same for `ops.selectors`, at one N."""
        keys, coded = self.key.shape[1], None
        if self.index is not None:
            most = max(keys, self.index.first[0] + max(self.index.pages) * PAGE)
            coded = self.index.decoded(most, self.key.shape[2])[:, :, :keys]
        return SelectorView(
            query=self.query[None].float(),
            scores=self.scores[None],
            seen=self.seen[None, None],
            budgets=torch.full((1, len(self.query), 1), budget, device=self.scores.device, dtype=torch.int64),
            finish=logit_of(self.terms.scaling, self.terms.softcap),
            scaling=self.terms.scaling,
            index=self.index,
            coded=coded,
        )


class Selected(NamedTuple):
    """The kept tokens, bool `[Hq, Q, L]`, and the believed logits of the others `[Hq, Q, L]` (None: the exact ones)."""

    keep: torch.Tensor
    estimate: torch.Tensor | None = None


def selections(selector: str, rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
    """For each N in `budgets` what `selector` keeps; the exact one in the place of one that lacks its index.

    Raises:
        GeosparseError: No selector has that name.
    """
    SELECTORS.check(selector)
    rule = SELECTORS[selector]
    if rule.indexed and rows.index is None:
        rule = SELECTORS[EXACT]
    return _each_budget(rule, rows, budgets) if rule.ranks is None else _by_rank(rule.ranks, rows, budgets)


def _by_rank(scores: str, rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
    """The N tokens of highest `scores`, an attribute of SelectorView: ranked once for all N."""
    ranked = rows.scores if scores == "scores" else getattr(rows.view(1), scores)[0]
    rank = rank_of(selection_order(ranked, rows.seen))
    return (Selected(rows.seen & (rank < budget), None if ranked is rows.scores else ranked) for budget in budgets)


def _each_budget(rule: SelectorRule, rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
    """A selector whose candidates change with N: asked once per budget."""
    for budget in budgets:
        view = rows.view(budget)
        choice = choose(view, rule.name)
        yield Selected(choice.keep[0] > 0, None if choice.estimate is view.scores else choice.estimate[0])

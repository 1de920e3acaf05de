"""Selectors as the profiler measures them: which N tokens each keeps, and what it believes the others weigh.

The rules themselves are those of `ops.selectors`; here one ranking serves all budgets where a rule allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ..geometry.separation import rank_of, selection_order
from ..hf.layers import Terms
from ..ops.key_index import PAGE, KeyIndex
from ..ops.selectors import CHOOSE, Sight, sink_count
from ..ops.spec import check_selector
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

    def sight(self, budget: int) -> Sight:
        """The same for `ops.selectors`, at one N."""
        assert self.index is not None
        keys = self.key.shape[1]
        coded = self.index.decoded(max(keys, self.index.first[0] + max(self.index.pages) * PAGE), self.key.shape[2])
        return Sight(
            query=self.query[None].float(),
            scores=self.scores[None],
            seen=self.seen[None, None],
            budgets=torch.full((1, len(self.query), 1), budget, device=self.scores.device, dtype=torch.int64),
            finish=logit_of(self.terms.scaling, self.terms.softcap),
            scaling=self.terms.scaling,
            index=self.index,
            coded=coded[:, :, :keys],
        )


class Selected(NamedTuple):
    """The kept tokens, bool `[Hq, Q, L]`, and the believed logits of the others `[Hq, Q, L]` (None: the exact ones)."""

    keep: torch.Tensor
    estimate: torch.Tensor | None = None


def topn(rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
    """The N tokens of largest attention weight, ties to the smaller index."""
    rank = rank_of(selection_order(rows.scores, rows.seen))
    return (Selected(rows.seen & (rank < budget)) for budget in budgets)


def lowbit(rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
    """The N tokens of largest logit as the index codes the keys."""
    coarse = rows.sight(1).coarse[0]
    rank = rank_of(selection_order(coarse, rows.seen))
    return (Selected(rows.seen & (rank < budget), coarse) for budget in budgets)


def sink_recent(rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
    """The first few visible tokens and the most recent ones, N in all; looks at no score."""
    place = rows.seen.cumsum(-1)
    visible = place[..., -1:]
    for budget in budgets:
        sinks = int(sink_count(torch.tensor(budget, dtype=torch.int64, device="cpu")))
        keep = rows.seen & ((place <= sinks) | (place > visible - (budget - sinks)))
        yield Selected(keep.expand(rows.scores.shape))


def _each_budget(name: str) -> Callable[[Scored, Sequence[int]], Iterator[Selected]]:
    """A selector whose candidates change with N: asked once per budget."""

    def select(rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
        for budget in budgets:
            choice = CHOOSE[name](rows.sight(budget))  # type: ignore[index]
            yield Selected(choice.keep[0] > 0, choice.estimate[0])

    return select


SELECT: dict[str, Callable[[Scored, Sequence[int]], Iterator[Selected]]] = {
    "topn": topn,
    "lowbit": lowbit,
    "paged": _each_budget("paged"),
    "paged+lowbit": _each_budget("paged+lowbit"),
    "sink_recent": sink_recent,
}


def selections(selector: str, rows: Scored, budgets: Sequence[int]) -> Iterator[Selected]:
    """For each N in `budgets` what `selector` keeps.

    Raises:
        GeosparseError: No selector has that name.
    """
    check_selector(selector)
    reads_index = selector not in ("topn", "sink_recent")
    return SELECT["topn" if reads_index and rows.index is None else selector](rows, budgets)

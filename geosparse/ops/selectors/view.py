"""What a selector sees of some queries, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from ..key_index import PAGE, KeyIndex
from ..topn import top_n


class Choice(NamedTuple):
    """A selection over the keys of a chunk.

    Attributes:
        keep: `[B, Hq, t, s]`, 1 where a token is kept, else 0, in the dtype of the scores.
        kept: `[B, Hq, t]`, how many.
        estimate: `[B, Hq, t, s]` logits of the tokens that are not kept, for the mass of the tail; -inf where unseen.
    """

    keep: torch.Tensor
    kept: torch.Tensor
    estimate: torch.Tensor


@dataclass
class SelectorView:
    """Some queries `[B, Hq, t]` and the keys `[low, low + s)` that they may see.

    Attributes:
        query: `[B, Hq, t, D]` fp32 or fp64.
        scores: `[B, Hq, t, s]` exact logits, -inf where unseen.
        seen: `[B or 1, 1, t, s]` bool.
        budgets: int64 `[B or 1, Hq, t or 1]`.
        finish: From a dot product of query and key to a logit.
        scaling: Its factor.
        low: The first key of the chunk.
        index: The index of all keys; None where no selector reads it.
        coded: `[B, Hkv, S, D]`, all keys as the index has them; None where no selector reads them.
    """

    query: torch.Tensor
    scores: torch.Tensor
    seen: torch.Tensor
    budgets: torch.Tensor
    finish: Callable[[torch.Tensor], torch.Tensor]
    scaling: float
    low: int = 0
    index: KeyIndex | None = None
    coded: torch.Tensor | None = None

    def highest(self, scores: torch.Tensor, estimate: torch.Tensor | None = None) -> Choice:
        """The N tokens of highest score, ties to the smaller index.

        Args:
            scores: `[B, Hq, t, s]`, -inf where unseen.
            estimate: Logits of the tokens that are not kept; None: the exact ones.
        """
        keep, kept = top_n(scores, self.budgets)
        return Choice(keep, kept, self.scores if estimate is None else estimate)

    @cached_property
    def pages(self) -> KeyIndex:
        """The index, where there must be one."""
        assert self.index is not None
        return self.index

    @cached_property
    def page_of(self) -> torch.Tensor:
        """`[B, s]` int64, the page of each key of the chunk; negative before the first token."""
        places = torch.arange(self.low, self.low + self.scores.shape[-1], device=self.scores.device, dtype=torch.int64)
        first = torch.tensor(self.pages.first, device=places.device, dtype=torch.int64)[:, None]
        return (places - first).div(PAGE, rounding_mode="floor")

    @cached_property
    def complete_pages(self) -> torch.Tensor:
        """`[B, t]` int64, how many pages are complete for each query."""
        visible = self.seen[:, 0].sum(-1).expand(self.scores.shape[0], -1)
        return visible.div(PAGE, rounding_mode="floor")

    @cached_property
    def indexed(self) -> torch.Tensor:
        """`[B, 1, t, s]` bool: keys in a page that is complete for the query; the others it sees are read exactly."""
        page = self.page_of[:, None, :]
        return ((page >= 0) & (page < self.complete_pages[:, :, None]))[:, None]

    def from_pages(self, values: torch.Tensor) -> torch.Tensor:
        """Per page `[B, Hq, t, P]` -> per key of the chunk `[B, Hq, t, s]`; what is not indexed gets anything."""
        if not values.shape[-1]:
            return torch.zeros_like(self.scores, dtype=values.dtype)
        page = self.page_of.clamp(0, values.shape[-1] - 1)
        return values.gather(-1, page[:, None, None, :].expand(self.scores.shape))

    @cached_property
    def mean_of_pages(self) -> torch.Tensor:
        """`[B, Hq, t, s]`: for each key the log of the mean of exp(logit) in its page; -inf where unseen."""
        return self.from_pages(self.page_logits[1]).masked_fill(~self.seen, -torch.inf)

    @cached_property
    def coarse(self) -> torch.Tensor:
        """`[B, Hq, t, s]` logits with the keys' codes in the place of the keys, exact outside complete pages."""
        batch, dim = self.query.shape[0], self.query.shape[-1]
        assert self.coded is not None
        keys = self.coded[:, :, self.low : self.low + self.scores.shape[-1]].to(self.query.dtype)
        grouped = self.query.reshape(batch, keys.shape[1], -1, dim)
        logits = self.finish((grouped @ keys.transpose(-1, -2)).view(self.scores.shape))
        return torch.where(self.indexed, logits, self.scores)

    @cached_property
    def page_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Per page `[B, Hq, t, P]`: the largest logit there can be, and the log of the mean of exp(logit).

        The bounds only rank pages and stay without the soft cap, at which fp32 cannot tell large ones apart.
        """
        bound, centre, variance = self.pages.page_scores(self.query)
        spread = variance * (0.5 * self.scaling**2)
        complete = (
            torch.arange(bound.shape[-1], device=bound.device, dtype=torch.int64)
            < self.complete_pages[:, None, :, None]
        )
        return (bound * self.scaling).masked_fill(~complete, -torch.inf), self.finish(centre) + spread

    def candidates(self, tokens: torch.Tensor) -> torch.Tensor:
        """`[B, Hq, t, s]` bool: the pages of highest bound that hold `tokens` `[B or 1, Hq, t or 1]`, and the rest that
        is in no complete page."""
        bound, _ = self.page_logits
        if not bound.shape[-1]:
            return self.seen.expand(self.scores.shape)
        chosen, _ = top_n(bound, -(-tokens // PAGE))
        return torch.where(self.indexed, self.from_pages(chosen) > 0, self.seen)

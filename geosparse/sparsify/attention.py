"""The sparse attention of one planned layer: what transformers calls once a model is sparsified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..errors import GeosparseError
from ..hf.interface import register
from ..hf.layers import Terms, dense_attention, read_terms
from ..ops import (
    PATHS,
    Budgets,
    Selectors,
    Span,
    Tails,
    Visibility,
    best_path,
    budgets_of_row,
    needs_gradient,
    needs_index,
    span_of,
    visible_rows,
)
from ..ops.hot_pages import HotPages, pages_of
from ..ops.offloaded import offloaded_attention, reads_every_key
from ..ops.selectors import EXACT, rules_of
from ..ops.spec import per_head
from .block_prefill import block_attention
from .compiled import attend_compiled, leave_graph, number_of
from .receipt import Receipt


@dataclass(frozen=True)
class LayerRules:
    """What a plan says of one layer.

    Attributes:
        budgets: Of the `Hq` query heads.
        tails: One for all heads, or one per head.
        selectors: Likewise.
        share_kv: The heads of one KV group select together.
        window: The layer's sliding window. Pages do not slide, so its selectors that read an index are exact there.
    """

    budgets: Budgets
    tails: Tails
    selectors: Selectors = EXACT
    share_kv: bool = False
    window: int | None = None

    @property
    def exact(self) -> Selectors:
        """The selectors without an index: top-N in the place of those that read one."""
        words = per_head(self.selectors, len(self.budgets.n_keep))
        return [EXACT if needs_index(word) else word for word in words]


class SparseAttention:
    """Serves one attention layer: keeps N tokens in each head at every query, and counts them."""

    def __init__(
        self,
        layer: int,
        rules: LayerRules,
        receipt: Receipt,
        path: str = "auto",
        prefill: str = "exact",
        dense_below: int = 0,
    ) -> None:
        """Args: the layer's place in the plan, its rules, where to count, the ops path, the prefill mode, and the
        context below which single queries are served densely because that is faster."""
        self.layer = layer
        self.rules = rules
        self.receipt = receipt
        self.path = path
        self.prefill = prefill
        self.dense_below = dense_below
        self._n_keep = tuple(rules.budgets.n_keep.tolist())
        self._growth = None if rules.budgets.growth is None else tuple(rules.budgets.growth.tolist())
        self._indexed = needs_index(rules.selectors)
        self._every_key = (
            rules.share_kv
            or rules.window is not None
            or reads_every_key(rules.selectors, rules.tails, len(rules.budgets.n_keep))
        )
        self._number, self._outside = number_of(self), leave_graph()
        if self._indexed and rules.window is not None:
            receipt.note(layer, EXACT, f"a sliding window of {rules.window} tokens has no pages")
        for rule in rules_of(self._selectors(None)):
            if rule.kernel is None and receipt.path != "torch":
                receipt.note(layer, "plain PyTorch", f"the selector {rule.name} has no kernels")

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Visibility | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Sparse attention `[B, Hq, T, Dv]` of `query` `[B, Hq, T, D]` over `key`, `value` `[B, Hkv, S, D]`."""
        terms = read_terms(module, query, kwargs)
        if torch.compiler.is_compiling():
            if needs_gradient(query, key, value, terms.sink):
                return self._outside(self.serve, query, key, value, attention_mask, terms)
            return attend_compiled(self._number, query, key, value, attention_mask, terms)
        return self.serve(query, key, value, attention_mask, terms)

    def serve(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Visibility | None,
        terms: Terms,
    ) -> torch.Tensor:
        """The same with the terms of the call read."""
        (batch, _, queries, _), keys = query.shape, key.shape[2]
        mask, bias = split_mask(attention_mask, keys)
        graph = torch.is_grad_enabled() and needs_gradient(query, key, value, bias, terms.sink)
        if graph and not (key.requires_grad and value.requires_grad):
            # A cache may write over what it handed out before the backward pass reads it.
            key, value = key.clone(), value.clone()
        pages = None if graph else self._hot_pages(key, mask, bias)
        if pages is None and key.device != query.device:
            key, value = key.to(query.device), value.to(query.device)
        visible = visible_rows(Span() if mask is None else mask, batch, queries, keys, query.device)
        if self.prefill == "dense" and queries > 1:
            self.receipt.count_otherwise(self.layer, visible, None, "dense", "prefill is dense")
            return dense_attention(query, key, value, attention_mask, terms)
        if self.prefill == "block" and queries > 1:
            return self._block(query, key, value, mask, visible, terms)
        if queries == 1 and keys < self.dense_below:
            why = f"below {self.dense_below} tokens that is faster here"
            self.receipt.count_otherwise(self.layer, visible, None, "dense", why)
            return dense_attention(query, key, value, attention_mask, terms)
        budgets = self._budgets(mask, visible, keys)
        rules: dict[str, Any] = {
            "tail": self.rules.tails,
            "selector": self._selectors(mask),
            "mask": mask,
            **vars(terms),
        }
        if pages is not None:
            result = offloaded_attention(query, key, value, budgets, pages, **rules)
        else:
            path = best_path(query, key, value, bias, terms.sink) if self.path == "auto" else self.path
            result = PATHS[path](query, key, value, budgets, share_kv=self.rules.share_kv, bias=bias, **rules)
        self.receipt.count(self.layer, visible, result.kept)
        return result.output

    def __getstate__(self) -> dict[str, Any]:
        """All but what compiled graphs find this very object by, and leave through."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_number", "_outside")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is found by a number of its own; transformers may not have heard of sparse attention where it is."""
        self.__dict__.update(state)
        self._number, self._outside = number_of(self), leave_graph()
        register()

    def _hot_pages(self, key: torch.Tensor, mask: Visibility | None, bias: torch.Tensor | None) -> HotPages | None:
        """The pages of offloaded keys, where a step can do with some of them."""
        pages = pages_of(key)
        if pages is None or key.shape[2] < self.dense_below:
            return None
        if self._every_key or bias is not None or isinstance(mask, torch.Tensor):
            self.receipt.note(self.layer, "read as a whole in spite of offloading", "a head scores every key")
            return None
        return pages

    def _block(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: Visibility | None,
        visible: torch.Tensor,
        terms: Terms,
    ) -> torch.Tensor:
        """Prefill in blocks; dense where the mask has no fixed first token, as in a sliding window."""
        span = Span() if mask is None else mask
        if not isinstance(span, Span) or span.window is not None:
            self.receipt.count_otherwise(self.layer, visible, None, "dense", "prefill in blocks needs plain causality")
            return dense_attention(query, key, value, mask, terms)
        result = block_attention(query, key, value, self._n_keep, span, terms)
        self.receipt.count_otherwise(self.layer, visible, result.kept, "block", "prefill is in blocks")
        return result.output

    def _budgets(self, mask: Visibility | None, visible: torch.Tensor, keys: int) -> tuple[int, ...] | torch.Tensor:
        """N of every head, and of every query where it grows with what the query sees."""
        if self._growth is None:
            return self._n_keep
        if mask is None and visible.shape[-1] == 1 and visible.device.type == "cpu":
            return budgets_of_row(self._n_keep, self._growth, self.rules.budgets.reference, keys)
        return self.rules.budgets.at(visible).movedim(0, 1)

    def _selectors(self, mask: Visibility | None) -> Selectors:
        """The plan's selectors; exact ones where there is no fixed first token from which pages could count."""
        if not self._indexed or (self.rules.window is None and not isinstance(mask, torch.Tensor)):
            return self.rules.selectors
        if self.rules.window is None:
            self.receipt.note(self.layer, EXACT, "its mask is not a causal one with padding on the left")
        return self.rules.exact


def split_mask(attention_mask: Visibility | None, keys: int) -> tuple[Visibility | None, torch.Tensor | None]:
    """A mask as given by transformers -> (a Span, bool `[B, 1, T, S]` or None, and an additive bias or None).

    Raises:
        GeosparseError: The mask differs between heads, or does not cover the keys.
    """
    if attention_mask is None or isinstance(attention_mask, Span):
        return attention_mask, None
    if attention_mask.dim() != 4 or attention_mask.shape[-1] < keys:
        raise GeosparseError(f"Expected an attention mask [B, 1, T, {keys}], found {list(attention_mask.shape)}.")
    attention_mask = attention_mask[..., :keys]
    if attention_mask.dtype == torch.bool:
        mask, bias = attention_mask, None
    else:
        mask = attention_mask > torch.finfo(attention_mask.dtype).min / 2
        bias = attention_mask.masked_fill(~mask, 0.0)
        bias = bias if needs_gradient(bias) or bool(bias.any()) else None
    if mask.shape[1] != 1:
        raise GeosparseError("A mask that differs between heads is not supported with sparse attention.")
    if mask.shape[2] == 1:
        return span_of(mask) or mask, bias
    return mask, bias

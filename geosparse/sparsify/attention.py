"""The sparse attention of one planned layer: what transformers calls once a model is sparsified.

How a call is served is decided at the door, from the call and the rules alone, with a reason where it is otherwise than
the plan says; the server of that mode is then entered once, and the receipt told what it kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch

from ..hf.call import call_of
from ..hf.dense import attend_dense
from ..hf.interface import register
from ..ops import AttentionCall, HeadRules, Selectors, attend, needs_index, visible_rows
from ..ops.call import CAUSAL
from ..ops.dispatch import SERVING_PATHS
from ..ops.hot_pages import NOTE
from ..ops.offloaded import attend_offloaded, reads_every_key
from ..ops.selectors import EXACT, rules_of
from ..ops.spec import per_head
from .block_prefill import attend_blocks
from .compiled import attend_compiled, leave_graph, number_of
from .receipt import Receipt

Mode = Literal["selected", "offloaded", "dense", "block"]


class Served(NamedTuple):
    """How a call is served.

    Attributes:
        mode: Of SERVERS.
        why: Why not by the plan; empty where it is by the plan.
    """

    mode: Mode
    why: str = ""


class SparseAttention:
    """Serves one attention layer: keeps N tokens in each head at every query, and counts them."""

    def __init__(
        self,
        layer: int,
        rules: HeadRules,
        receipt: Receipt,
        path: str = "auto",
        prefill: str = "exact",
        dense_below: int = 0,
    ) -> None:
        """Attention of one layer.

        Args:
            layer: Its place in the plan.
            rules: Of its heads.
            receipt: Where to count.
            path: The path of `ops.dispatch` for selected tokens, or "auto".
            prefill: How several queries at once are served: "exact", "dense" or "block".
            dense_below: Context in tokens below which single queries are served densely, because that is faster.
        """
        self.layer = layer
        self.rules = rules
        self.receipt = receipt
        self.prefill = prefill
        self.dense_below = dense_below
        self.servers = SERVERS if path == "auto" else SERVERS | {"selected": SERVING_PATHS[path]}
        heads = len(rules.n_keep)
        self._paged = needs_index(rules.selector)
        self._exact = rules._replace(selector=_without_index(rules.selector, heads)) if self._paged else rules
        self._every_key = (
            rules.share_kv or rules.window is not None or reads_every_key(rules.selector, rules.tail, heads)
        )
        self._number, self._outside = number_of(self), leave_graph()
        if self._paged and rules.window is not None:
            receipt.note(layer, EXACT, f"a sliding window of {rules.window} tokens has no pages")
        for rule in rules_of((self._exact if rules.window is not None else rules).selector):
            if rule.kernel is None and receipt.path != "torch":
                receipt.note(layer, "plain PyTorch", f"the selector {rule.name} has no kernels")

    def __call__(self, module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
        """Sparse attention `[B, Hq, T, Dv]`."""
        if torch.compiler.is_compiling():
            if call.needs_gradient:
                return self._outside(self._serve_given, call)
            return attend_compiled(self._number, call)
        return self.serve(call)

    def serve(self, call: AttentionCall) -> torch.Tensor:
        """The same, outside of a compiled graph."""
        query, key, value, mask, *_ = call
        queries, keys = query.shape[2], key.shape[2]
        graph = torch.is_grad_enabled() and call.needs_gradient
        if graph and not (key.requires_grad and value.requires_grad):
            # A cache may write over what it handed out before the backward pass reads it.
            call = call._replace(key=key.clone(), value=value.clone())
        mode, why = self._mode_of(call, graph)
        if mode != "offloaded" and key.device != query.device:
            call = call._replace(key=call.key.to(query.device), value=call.value.to(query.device))
        visible = visible_rows(CAUSAL if mask is None else mask, len(query), queries, keys, query.device)
        rules = self.rules if mode in UNSELECTED else self._rules_at(call, visible)
        output, kept = self.servers[mode](call, rules)
        self.receipt.record(self.layer, visible, kept, mode, why)
        return output

    def _serve_given(self, call: AttentionCall) -> torch.Tensor:
        """`serve` of a call that was read inside of a graph, where a mask stays as the model gave it."""
        return self.serve(call_of(*call[:3], call.mask, call.terms, call.window))

    def _rules_at(self, call: AttentionCall, visible: torch.Tensor) -> HeadRules:
        """The rules for a call: N by what its queries see, and selectors without an index where pages have no start."""
        rules, mask = self.rules, call.mask
        if self._paged and (rules.window is not None or isinstance(mask, torch.Tensor)):
            if rules.window is None:
                self.receipt.note(self.layer, EXACT, "its mask is not a causal one with padding on the left")
            rules = self._exact
        if rules.growth is None:
            return rules
        alike = mask is None and visible.shape[-1] == 1 and visible.device.type == "cpu"
        return rules.at_row(call.key.shape[2]) if alike else rules.at(visible)

    def _mode_of(self, call: AttentionCall, graph: bool) -> Served:
        """How `call` is served; `graph`: autograd goes through it."""
        queries, keys = call.query.shape[2], call.key.shape[2]
        if queries > 1 and self.prefill != "exact":
            if self.prefill == "dense":
                return Served("dense", "prefill is dense")
            if isinstance(call.mask, torch.Tensor) or (call.mask is not None and call.mask.window is not None):
                return Served("dense", "prefill in blocks needs plain causality")
            return Served("block", "prefill is in blocks")
        if queries == 1 and keys < self.dense_below:
            return Served("dense", f"below {self.dense_below} tokens that is faster here")
        if graph or getattr(call.key, NOTE, None) is None:
            return SELECTED
        if self._every_key or call.bias is not None or isinstance(call.mask, torch.Tensor):
            self.receipt.note(self.layer, "read as a whole in spite of offloading", "a head scores every key")
            return SELECTED
        return Served("offloaded")

    def __getstate__(self) -> dict[str, Any]:
        """All but what compiled graphs find this very object by, and leave through."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_number", "_outside")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is found by a number of its own; transformers may not have heard of sparse attention where it is."""
        self.__dict__.update(state)
        self._number, self._outside = number_of(self), leave_graph()
        register()


SELECTED = Served("selected")


def _dense(call: AttentionCall, rules: HeadRules) -> tuple[torch.Tensor, None]:
    """Dense attention, which keeps all that is visible."""
    return attend_dense(call), None


Server = Callable[[AttentionCall, HeadRules], tuple[torch.Tensor, torch.Tensor | None]]

# Mode -> what serves it: the output `[B, Hq, T, Dv]` and the tokens kept per head, None for all that are visible.
SERVERS: dict[Mode, Server] = {
    "selected": attend,
    "offloaded": attend_offloaded,
    "dense": _dense,
    "block": attend_blocks,
}
UNSELECTED: frozenset[Mode] = frozenset({"dense", "block"})  # modes that take the budgets as they are, or none


def _without_index(selectors: Selectors, heads: int) -> list[str]:
    """`selectors` with top-N in the place of those that read an index."""
    return [EXACT if needs_index(name) else name for name in per_head(selectors, heads)]

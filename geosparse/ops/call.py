"""One attention call, and what a plan says of the heads that it is for: all that an attention path takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .budgets import Budgets, budgets_of_row
from .spec import Attended, Keep, Selectors, Tails
from .visibility import Span, Visibility

CAUSAL = Span()


class Terms(NamedTuple):
    """What makes logits of dot products.

    Attributes:
        scaling: Factor on the dot products.
        softcap: Logits become `softcap * tanh(logits / softcap)` (Gemma 2); None leaves them.
        sink: `[Hq]` learned logits of a token that is always seen, never counted and has no value (gpt-oss).
    """

    scaling: float
    softcap: float | None = None
    sink: torch.Tensor | None = None


class AttentionCall(NamedTuple):
    """What one attention call asks for.

    Attributes:
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        mask: A Span, or bool `[B or 1, 1, T, S]`, True where the query sees the key; None is causal, the last query at
            the last key.
        bias: Added to the logits, broadcastable to `[B, Hq, T, S]`.
        terms: Of the logits.
        window: The sliding window that the model names beside its mask.
        given: The mask in the form in which the model gave it, for dense attention; None: `mask` says it all.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Visibility | None
    bias: torch.Tensor | None
    terms: Terms
    window: int | None = None
    given: torch.Tensor | None = None

    @property
    def visibility(self) -> Visibility:
        """The mask, plain causality included."""
        return CAUSAL if self.mask is None else self.mask

    @property
    def span(self) -> Span:
        """The mask of a call that has a Span, or none."""
        assert not isinstance(self.mask, torch.Tensor)
        return CAUSAL if self.mask is None else self.mask

    @property
    def needs_gradient(self) -> bool:
        """Whether autograd is to go through the call."""
        if not torch.is_grad_enabled():
            return False
        if self.query.requires_grad or self.key.requires_grad or self.value.requires_grad:
            return True
        bias, sink = self.bias, self.terms.sink
        return (bias is not None and bias.requires_grad) or (sink is not None and sink.requires_grad)


class HeadRules(NamedTuple):
    """What the heads of one layer keep, and what stands for the rest.

    Attributes:
        n_keep: `Hq` integers >= 1, or int64 `[B or 1, Hq, T or 1]`.
        tail: What stands for the discarded tokens (`ops.tails`): one name for all heads, or one per query head.
        selector: How the tokens are found (`ops.selectors`), likewise.
        share_kv: The heads of one KV group select together.
        window: The layer's sliding window. Pages do not slide, so selectors that read an index are exact there.
        growth: `Hq` exponents by which N grows with what a query sees, beyond `reference` tokens; None: it does not.
        reference: Visible tokens at which `n_keep` holds.
    """

    n_keep: Keep
    tail: Tails
    selector: Selectors = "topn"
    share_kv: bool = False
    window: int | None = None
    growth: tuple[float, ...] | None = None
    reference: int = 1

    @classmethod
    def of(cls, budgets: Budgets, tail: Tails, *rest: Any) -> HeadRules:
        """The rules of a layer with these `budgets`; the rest as the attributes from `selector` to `window`."""
        growth = None if budgets.growth is None else tuple(budgets.growth.tolist())
        return cls(tuple(budgets.n_keep.tolist()), tail, *rest)._replace(growth=growth, reference=budgets.reference)

    def at(self, visible: torch.Tensor) -> HeadRules:
        """These rules with N `[B, Hq, T]` of queries that see `visible` `[B, T]` tokens."""
        if self.growth is None:
            return self
        n_keep = torch.tensor(self.n_keep, dtype=torch.int64, device="cpu")
        growth = torch.tensor(self.growth, dtype=torch.float64, device="cpu")
        grown = Budgets(n_keep, growth, self.reference).at(visible)
        return self._replace(n_keep=grown.movedim(0, 1))

    def at_row(self, visible: int) -> HeadRules:
        """`at` where every query sees as many tokens, in plain Python: what a decode step asks for."""
        if self.growth is None:
            return self
        return self._replace(n_keep=budgets_of_row(tuple(self.n_keep), self.growth, self.reference, visible))


Path = Callable[[AttentionCall, HeadRules], Attended]


def as_function(path: Callable[..., Attended], name: str) -> Callable[..., Attended]:
    """`path(call, rules)` as a function of tensors, for whoever has no call at hand.

    Args:
        path: An attention path.
        name: Of the function.
    """

    def attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        n_keep: Keep,
        *,
        tail: Tails,
        scaling: float,
        selector: Selectors = "topn",
        share_kv: bool = False,
        mask: Visibility | None = None,
        bias: torch.Tensor | None = None,
        softcap: float | None = None,
        sink: torch.Tensor | None = None,
        **options: Any,
    ) -> Attended:
        call = AttentionCall(query, key, value, mask, bias, Terms(scaling, softcap, sink))
        return path(call, HeadRules(n_keep, tail, selector, share_kv), **options)

    attention.__name__ = attention.__qualname__ = name
    attention.__module__ = path.__module__
    attention.__doc__ = f"""{(path.__doc__ or "").splitlines()[0]}

    Args:
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        n_keep, tail, selector, share_kv: As `HeadRules` has them.
        mask, bias: As `AttentionCall` has them.
        scaling, softcap, sink: As `Terms` has them.
        **options: Of the path.

    Returns:
        Output `[B, Hq, T, Dv]` in the dtype of `query`, and the tokens kept per query head, summed.
    """
    return attention

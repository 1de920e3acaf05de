"""What a model asks of its attention: every keyword and mask of a call is understood here, or refused by name."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import GeosparseError
from ..ops import AttentionCall, Terms, Visibility, needs_gradient, span_of
from .keywords import check_keywords, in_words


def read_call(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Visibility | None,
    keywords: dict[str, Any],
) -> AttentionCall:
    """The call that transformers makes of an attention function.

    Args:
        module: The attention module.
        query: `[B, Hq, T, D]`.
        key: `[B, Hkv, S, D]`.
        value: `[B, Hkv, S, Dv]`.
        attention_mask: A Span, a mask `[B, 1, T, S]`, bool or added to the logits, or None.
        keywords: All others of the call.

    Raises:
        GeosparseError: The call asks for what would have to be ignored.
    """
    check_keywords(module, keywords)
    causal = keywords.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise GeosparseError(f"{in_words(module)} is not supported: its attention is not causal.")
    if keywords.get("dropout"):
        raise GeosparseError("Attention dropout is not supported with sparse attention: call model.eval() first.")
    scaling = keywords.get("scaling")
    terms = Terms(
        query.shape[-1] ** -0.5 if scaling is None else scaling, keywords.get("softcap"), keywords.get("s_aux")
    )
    if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 4 and attention_mask.shape[1] != 1:
        raise GeosparseError(f"{in_words(module)} is not supported: its mask differs between heads.")
    return call_of(query, key, value, attention_mask, terms, keywords.get("sliding_window"))


def call_of(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Visibility | None,
    terms: Terms,
    window: int | None = None,
) -> AttentionCall:
    """An AttentionCall with `mask` as a model gives it; inside of a graph that is compiled it stays as it is."""
    if not isinstance(mask, torch.Tensor):
        return AttentionCall(query, key, value, mask, None, terms, window)
    if torch.compiler.is_compiling():
        return AttentionCall(query, key, value, mask, None, terms, window, mask)
    return AttentionCall(query, key, value, *split_mask(mask, key.shape[2]), terms, window, mask)


def split_mask(mask: torch.Tensor, keys: int) -> tuple[Visibility | None, torch.Tensor | None]:
    """A mask as models give it -> (a Span or bool `[B, 1, T, S]`, and a bias of the logits or None).

    Raises:
        GeosparseError: The mask does not cover the keys.
    """
    if mask.dim() != 4 or mask.shape[-1] < keys:
        raise GeosparseError(f"Expected an attention mask [B, 1, T, {keys}], found {list(mask.shape)}.")
    mask, bias = mask[..., :keys], None
    if mask.dtype != torch.bool:
        added = mask
        mask = added > torch.finfo(added.dtype).min / 2
        bias = added.masked_fill(~mask, 0.0)
        bias = bias if needs_gradient(bias) or bool(bias.any()) else None
    if mask.shape[2] == 1:
        return span_of(mask) or mask, bias
    return mask, bias

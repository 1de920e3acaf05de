"""The sparse attention of one planned layer: what transformers calls once a model is sparsified."""

from __future__ import annotations

from typing import Any

import torch

from .architecture import read_terms
from .errors import GeosparseError
from .ops import PATHS, Tails, best_path
from .receipt import Receipt


class SparseAttention:
    """Serves one attention layer: keeps `n_keep[h]` tokens in head h at every query, and counts them."""

    def __init__(self, layer: int, n_keep: list[int], tail: Tails, receipt: Receipt, path: str = "auto") -> None:
        """Args: the layer's place in the plan, `Hq` budgets, the tail or `Hq` tails, where to count, the ops path."""
        self.layer = layer
        self.n_keep = n_keep
        self.tail = tail
        self.receipt = receipt
        self.path = path

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Sparse attention `[B, Hq, T, Dv]` of `query` `[B, Hq, T, D]` over `key`, `value` `[B, Hkv, S, D]`."""
        terms = read_terms(module, query, kwargs)
        mask, bias = split_mask(attention_mask, key.shape[2])
        path = best_path(query, key, value, bias) if self.path == "auto" else self.path
        result = PATHS[path](
            query,
            key,
            value,
            self.n_keep,
            tail=self.tail,
            mask=mask,
            bias=bias,
            **vars(terms),
        )
        self.receipt.count(self.layer, visible_rows(mask, query, key), result.kept)
        return result.output


def split_mask(attention_mask: torch.Tensor | None, keys: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """A mask as given by transformers -> (bool `[B, 1, T, S]` or None, additive bias or None).

    Raises:
        GeosparseError: The mask differs between heads, or does not cover the keys.
    """
    if attention_mask is None:
        return None, None
    if attention_mask.dim() != 4 or attention_mask.shape[-1] < keys:
        raise GeosparseError(f"Expected an attention mask [B, 1, T, {keys}], found {list(attention_mask.shape)}.")
    attention_mask = attention_mask[..., :keys]
    if attention_mask.dtype == torch.bool:
        mask, bias = attention_mask, None
    else:
        mask = attention_mask > torch.finfo(attention_mask.dtype).min / 2
        bias = attention_mask.masked_fill(~mask, 0.0)
        bias = bias if bool(bias.any()) else None
    if mask.shape[1] != 1:
        raise GeosparseError("A mask that differs between heads is not supported with sparse attention.")
    return mask, bias


def visible_rows(mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """How many tokens each query sees, `[B, T]`."""
    batch, queries, keys = query.shape[0], query.shape[2], key.shape[2]
    if mask is None:
        return torch.arange(keys - queries + 1, keys + 1, device=query.device).expand(batch, queries)
    return mask[:, 0].sum(-1).expand(batch, queries)

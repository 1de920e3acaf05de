"""The byte model: what a decode step reads of the cache, by selector and budget.

Per KV head and step a selector scans all visible tokens (exact keys, coded keys, page bounds, or nothing) and then
reads the rows that it keeps. The query heads of one KV group share the scan, and most of the rows: for three heads the
union of their kept sets is about 1.75 N (measured on SmolLM2-135M); a power law through that point serves others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..ops import SELECTORS, Selector
from ..ops.key_index import PAGE
from ..ops.spec import per_head

UNION_EXPONENT = math.log(1.75) / math.log(3)
# Bytes of one fp16 bound or scale; each channel of a page has two.
PER_PAGE = 2 * 2
ITEMSIZE = 2
"""Bytes of one number in the cache, where nothing else is known: 16-bit."""


class TokenBytes(NamedTuple):
    """What one token of one KV head weighs.

    Attributes:
        key_dim: Numbers of a key.
        value_dim: Numbers of a value.
        itemsize: Bytes of a number.
    """

    key_dim: int
    value_dim: int
    itemsize: int = ITEMSIZE

    def scanned(self, selector: Selector) -> float:
        """Bytes read of every visible token."""
        parts = {"key": self.key_dim * self.itemsize, "codes": self.codes, "bounds": PER_PAGE * self.key_dim / PAGE}
        return float(sum(parts[part] for part in SELECTORS[selector].scans))

    def kept(self, selector: Selector) -> float:
        """Bytes read of every kept token, beyond those scanned."""
        rule = SELECTORS[selector]
        key = 0 if rule.reads_every_key else self.key_dim * self.itemsize
        codes = self.codes * (rule.oversample or 0) if rule.coded else 0.0
        return float(key + self.value_dim * self.itemsize) + codes

    @property
    def codes(self) -> float:
        """Bytes of a key's 4-bit codes."""
        return self.key_dim / 2


def shared_rows(heads: int) -> float:
    """The share of their rows that `heads` query heads of one KV group really read: their union over their sum."""
    return float(heads**UNION_EXPONENT / heads)


def layer_bytes(
    n_keep: torch.Tensor, selectors: Selector | Sequence[Selector], kv_heads: int, visible: int, rows: TokenBytes
) -> float:
    """Bytes that one layer reads of the cache in a decode step.

    Args:
        n_keep: `[Hq]`, tokens kept per query head.
        selectors: One for all heads, or one per query head.
        kv_heads: KV heads.
        visible: Tokens that the query sees.
        rows: What a token weighs.
    """
    names = per_head(selectors, len(n_keep))
    group = len(names) // kv_heads
    total = 0.0
    for start in range(0, len(names), group):
        group_names = names[start : start + group]
        kept = [min(n, visible) for n in n_keep[start : start + group].tolist()]
        total += visible * sum(rows.scanned(name) for name in set(group_names))
        parts = [n * rows.kept(name) for n, name in zip(kept, group_names, strict=True)]
        total += max(sum(parts) * shared_rows(group), max(parts))
    return total


def split_bytes(
    budgets: torch.Tensor,
    selectors: torch.Tensor,
    kv_heads: int,
    limits: Sequence[int],
    rows: TokenBytes,
    share_kv: bool = False,
) -> float:
    """Bytes that one sequence's decode step reads of the cache, all layers.

    Args:
        budgets: `[layers, Hq]`, tokens kept.
        selectors: `[layers, Hq]`, indices in `ops.SELECTORS`.
        kv_heads: KV heads of a layer.
        limits: Per layer, the tokens that the query sees.
        rows: What a token weighs.
        share_kv: The heads of one KV group keep the same tokens.
    """
    step = budgets.shape[-1] // kv_heads if share_kv else 1
    return sum(
        layer_bytes(n_keep, [SELECTORS.names[index] for index in indices.tolist()], kv_heads, seen, rows)
        for n_keep, indices, seen in zip(budgets[:, ::step], selectors[:, ::step], limits, strict=True)
    )


def dense_bytes(kv_heads: int, limits: Sequence[int], rows: TokenBytes) -> float:
    """The same for dense attention, `[limits]` tokens per layer."""
    return float(sum(limits) * kv_heads * (rows.key_dim + rows.value_dim) * rows.itemsize)

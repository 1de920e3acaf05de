"""Bytes of the cache that one decode step reads, modelled: what a selector saves before any kernel is timed."""

from __future__ import annotations

from geosparse.ops import PAGE, Selector
from geosparse.ops.key_index import WIDTH
from geosparse.ops.selectors import SELECTORS

BOUND_BYTES = 2


def step_bytes(
    selector: Selector | None,
    n_keep: list[int],
    visible: int,
    kv_heads: int,
    key_dim: int,
    value_dim: int,
    itemsize: int,
    bits: int = 4,
) -> int:
    """Bytes that one query reads of one layer's keys, values and index.

    Keys that all heads of a KV group score are read once for the group; what a head keeps or chooses for itself is
    counted for each head, though heads that choose alike could share it. Outputs and queries are not counted.

    Args:
        selector: How tokens are found; None for dense attention.
        n_keep: Of each query head.
        visible: Tokens that the query sees.
        kv_heads: Heads of the cache.
        key_dim: Channels of a key.
        value_dim: Channels of a value.
        itemsize: Bytes of one number in the cache.
        bits: Of a channel in the index.
    """
    key, value = key_dim * itemsize, value_dim * itemsize
    if selector is None:
        return kv_heads * visible * (key + value)
    pages, rest = divmod(visible, PAGE)
    width = -(-key_dim // WIDTH) * WIDTH
    bounds, codes = 2 * width * BOUND_BYTES, PAGE * width * bits // 8  # of one page
    kept = [min(n, visible) for n in n_keep]
    values = sum(kept) * value
    keys = sum(kept) * key
    rule = SELECTORS[selector]
    if rule.reads_every_key:
        return kv_heads * visible * key + values
    if not rule.scans:
        return keys + values
    if rule.oversample is None:
        return kv_heads * (pages * (bounds + codes) + rest * key) + keys + values
    chosen = sum(min(pages, -(-rule.oversample * n // PAGE)) for n in n_keep)
    candidates = chosen * codes + keys if rule.coded else chosen * PAGE * key
    return kv_heads * (pages * bounds + rest * key) + candidates + values

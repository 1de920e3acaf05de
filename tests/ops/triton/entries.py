"""Every way into a Triton kernel, on small inputs that name dtype and device: (selector, way) -> kernels and call."""

from __future__ import annotations

import torch

from geosparse.ops import TAILS, AttentionCall, Span, Terms
from geosparse.ops.tails import TailShares
from geosparse.ops.triton import block_prefill, triton_attention
from geosparse.ops.triton.buffers import LayerBuffers, VisibleRows
from geosparse.ops.triton.decode import decode, dense, passes_of

from .material import DEVICE

HEADS, KV_HEADS, KEYS, DIM = 4, 2, 50, 32
BUDGETS = (1, 3, 17, 40)
HALF = torch.bfloat16
SHARES = (TailShares(0.3, -0.2, 0.4, 0.7), TailShares(pages=1.0), "blend25", "renormalize")
TERMS = {"scaling": 0.1, "softcap": 5.0}


def normal(*shapes, dtype=torch.float32, seed=0):
    """Normal numbers of these shapes, on the device of the tests."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(DEVICE, dtype) for shape in shapes
    ]


def sink():
    """A learned logit per head."""
    return normal((HEADS,), seed=1)[0]


def attended(queries, selector, tail, first=(0, 9), dtype=torch.float32):
    """`triton_attention`."""
    shapes = (2, HEADS, queries, DIM), (2, KV_HEADS, KEYS, DIM), (2, KV_HEADS, KEYS, DIM)
    query, key, value = normal(*shapes, dtype=dtype)
    words = {"selector": selector, "tail": tail, "mask": Span(first), "sink": sink()}
    return triton_attention(query, key, value, BUDGETS, **words, **TERMS)


def blocks():
    """`block_prefill`."""
    query, key, value = normal((2, HEADS, 40, DIM), (2, KV_HEADS, KEYS, DIM), (2, KV_HEADS, KEYS, DIM))
    call = AttentionCall(query, key, value, Span((0, 9)), None, Terms(0.1, 5.0, sink()))
    return block_prefill(call, [1, 2], 16)


def buffered(selector=None, dtype=torch.float32, tail=TAILS[-HEADS:]):
    """Keys that are taken in, tokens that are appended, and a step of decode or of dense attention."""
    key, value = normal((2, KV_HEADS, KEYS, DIM), (2, KV_HEADS, KEYS, DIM), dtype=dtype)
    (query,) = normal((2, HEADS, DIM), dtype=dtype, seed=2)
    rows = VisibleRows.of([0, 9], [KEYS - 3] * 2, DEVICE)
    layer = LayerBuffers(rows, KEYS + 6, KV_HEADS, DIM, DIM, dtype)
    layer.fill(key[:, :, :-3], value[:, :, :-3])
    for place in range(KEYS - 3, KEYS):
        rows.advance_()
        layer.append(key[:, :, place : place + 1], value[:, :, place : place + 1])
    state = (layer.key, layer.value, layer.value_sum, layer.means, layer.low, layer.high, layer.codes)
    if selector is None:
        return (*state, dense(query, layer.keys, 0.1, 5.0, sink()))
    budgets = torch.tensor([BUDGETS], dtype=torch.int32, device="cpu").to(DEVICE)
    passes = passes_of(HEADS, tail, selector, DEVICE)
    return (*state, *decode(query, layer.keys, budgets, passes, 0.1, None, sink()))


LISTS = {"score_tokens", "find_threshold", "list_tokens", "attend_part", "combine_parts"}
PAGES = {"score_bounds", "score_tokens", "find_threshold", "list_pages", "attend_part", "combine_parts"}
TAKEN_IN = {"encode_pages", "average_pages", "append_token"}
SPREAD = {"spread_pages"}
ENTRIES = {
    ("topn", "fp32"): (LISTS, lambda: attended(1, "topn", "blend50")),
    ("lowbit", "bf16"): (LISTS, lambda: attended(1, "lowbit", "centroid", dtype=HALF)),
    ("paged", "fp32"): (PAGES, lambda: attended(1, "paged", "blend25")),
    ("paged+lowbit", "fp16"): (PAGES, lambda: attended(1, "paged+lowbit", "drop", dtype=torch.float16)),
    ("all selectors", "fp32"): (
        LISTS | PAGES,
        lambda: attended(1, ("topn", "lowbit", "paged", "sink_recent"), "renormalize", first=(0, 40)),
    ),
    ("sink_recent", "fp32"): (LISTS - {"find_threshold"}, lambda: attended(1, "sink_recent", "centroid")),
    ("exact prefill", "fp32"): ({"attend_exactly"}, lambda: attended(9, "topn", "blend50")),
    ("sink_recent, shares", "bf16"): (
        LISTS - {"find_threshold"} | SPREAD,
        lambda: attended(1, "sink_recent", SHARES, dtype=HALF),
    ),
    ("lowbit, shares", "fp32"): (LISTS | SPREAD, lambda: attended(1, "lowbit", SHARES)),
    ("exact prefill, shares", "fp32"): ({"attend_exactly"}, lambda: attended(9, "topn", SHARES)),
    ("exact prefill", "bf16, codes"): ({"attend_exactly"}, lambda: attended(9, "lowbit", "drop", dtype=HALF)),
    ("block prefill", "fp32"): ({"score_blocks", "attend_blocks"}, blocks),
    ("buffers", "dense"): (TAKEN_IN | {"attend_part", "combine_parts"}, buffered),
    ("buffers", "paged, bf16"): (TAKEN_IN | PAGES, lambda: buffered("paged", HALF)),
    ("buffers", "paged, shares, bf16"): (TAKEN_IN | PAGES | SPREAD, lambda: buffered("paged", HALF, SHARES)),
}


def forget():
    """Let tensors that are made once be made again, under the defaults of the moment."""
    from geosparse.ops import triton

    for made_once in (triton._numbers, passes_of):
        made_once.cache_clear()


def all_results():
    """Every entry's tensors, as they are under the defaults of the moment."""
    forget()
    return {entry: [part.clone() for part in call()] for entry, (_, call) in ENTRIES.items()}

"""Every way into a C++ kernel, on small inputs that name their dtype and device: (kernel, way) -> what it returns."""

from __future__ import annotations

import sys

import torch

from geosparse.ops import SELECTORS, TAILS, Span, cpu_attention, remember_value_sum
from geosparse.ops.cpu import product, rms_norm
from geosparse.ops.cpu.bandwidth import WIDTH, read_rows
from geosparse.ops.cpu.fast_call import direct
from geosparse.ops.cpu.library import library
from geosparse.ops.cpu.linear import _by_python
from geosparse.ops.cpu.separation import separate
from geosparse.ops.tails import TailShares

cpu_module, decode_module = sys.modules["geosparse.ops.cpu"], sys.modules["geosparse.ops.cpu.decode"]
HEADS, KV_HEADS, KEYS, DIM = 6, 2, 50, 64
BUDGETS = (1, 3, 17, 40, 25, 59)
# Heads without an index, so that prefill has a kernel of its own, and all selectors with a tail that they take.
PLAIN = tuple(("topn", tail) for tail in TAILS[1:])
MIXED = tuple((word, "blend50" if SELECTORS[word].knows_rest else "renormalize") for word in (*SELECTORS, "topn"))

SHARES = TailShares(0.3, -0.2, 0.4, 0.7)
SHARED = tuple((word, SHARES if SELECTORS[word].knows_rest else "renormalize") for word in (*SELECTORS, "topn"))


def tensors(*shapes, seed=0, dtype=torch.float32):
    """Normal numbers of these shapes, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype) for shape in shapes]


def states(batch, queries, dtype=torch.float32):
    """Query, key and value of a call."""
    shapes = (batch, HEADS, queries, DIM), (batch, KV_HEADS, KEYS, DIM), (batch, KV_HEADS, KEYS, DIM)
    return tensors(*shapes, dtype=dtype)


def attended(batch, queries, rules, *, dtype=torch.float32, mask=None, summed=False, through_c=True):
    """`cpu_attention`, through fast_call.c or put together by Python."""
    query, key, value = states(batch, queries, dtype)
    if summed:
        remember_value_sum(value, value.sum(-2, dtype=torch.float64))
    selector, tail = ([pair[place] for pair in rules] for place in range(2))
    sink = tensors((HEADS,), seed=1)[0]
    words = {"tail": tail, "selector": selector, "scaling": 0.1, "mask": mask, "sink": sink, "softcap": 5.0}
    whole = decode_module.direct
    try:
        if not through_c:
            decode_module.direct = lambda: None
        return cpu_attention(query, key, value, BUDGETS, **words)
    finally:
        decode_module.direct = whole


def bool_mask(batch, queries):
    """Causality with holes."""
    row = torch.arange(KEYS - queries, KEYS, dtype=torch.int64, device="cpu")[:, None]
    column = torch.arange(KEYS, dtype=torch.int64, device="cpu")[None]
    return ((column <= row) & (column % 7 != 3)).expand(batch, 1, queries, KEYS)


def separated():
    """The counts of the geometry of three rows."""
    square, along, size, length = (part.abs() for part in tensors((3, 40), (3, 40), (3, 40), (3, 1)))
    picked = torch.arange(5, dtype=torch.int64, device="cpu").expand(3, 5) * 7
    return separate(square, along, size, length, picked, True, 1e-6, 1e-6)


def rows_read():
    """A sum over rows of a table."""
    (table,) = tensors((9, 2 * WIDTH))
    rows = torch.arange(300, dtype=torch.int64, device="cpu") % 9
    return (torch.tensor(read_rows(table, rows), dtype=torch.float64, device="cpu"),)


def multiplied(function, dtype):
    """A few rows times weights."""
    rows, weight, bias = tensors((2, 1, 33), (21, 33), (21,), dtype=dtype)
    with torch.no_grad():
        return (function(rows, weight, bias),)


def normed(dtype):
    """Norms of a few rows."""
    rows, weight = tensors((2, 1, 33), (33,), dtype=dtype)
    with torch.no_grad():
        return (rms_norm(rows, weight, 1e-6, "twice"),)


HALF = torch.bfloat16
ENTRIES = {
    ("gs_decode", "ctypes, one row"): lambda: attended(1, 1, MIXED, through_c=False),
    ("gs_decode", "ctypes, rows, padding, a sum"): lambda: attended(
        3, 1, MIXED, mask=Span((0, 7, 30)), summed=True, through_c=False
    ),
    ("gs_decode", "ctypes, a mask"): lambda: attended(2, 1, PLAIN, mask=bool_mask(2, 1), dtype=HALF, through_c=False),
    ("gs_decode", "ctypes, rows, padding, shares"): lambda: attended(
        3, 1, SHARED, mask=Span((0, 7, 30)), through_c=False
    ),
    ("gs_prefill", "ctypes"): lambda: attended(2, 30, PLAIN, mask=Span((0, 9))),
    ("gs_prefill", "ctypes, bf16, a window"): lambda: attended(2, 30, PLAIN, mask=Span((0, 0), 20), dtype=HALF),
    ("gs_weigh", "ctypes, few queries"): lambda: attended(2, 5, PLAIN),
    ("gs_weigh", "ctypes, a mask"): lambda: attended(2, 30, PLAIN, mask=bool_mask(2, 30), dtype=HALF),
    ("gs_weigh", "ctypes, codes"): lambda: attended(2, 5, (*PLAIN[:5], ("lowbit", "centroid"))),
    ("gs_weigh", "ctypes, shares"): lambda: attended(2, 30, (("topn", SHARES),) * HEADS, mask=Span((0, 9))),
    ("gs_separate", "ctypes"): separated,
    ("gs_read_rows", "ctypes"): rows_read,
    ("gs_product", "ctypes"): lambda: multiplied(_by_python, torch.float32),
    ("gs_product", "ctypes, bf16"): lambda: multiplied(_by_python, HALF),
}
IN_C = {
    ("decode", "one row"): lambda: attended(1, 1, MIXED),
    ("decode", "one row, bf16, a sum"): lambda: attended(1, 1, MIXED, dtype=HALF, summed=True),
    ("decode", "rows, padding"): lambda: attended(3, 1, MIXED, mask=Span((0, 7, 30)), summed=True),
    ("decode", "rows, padding, shares"): lambda: attended(3, 1, SHARED, mask=Span((0, 7, 30)), dtype=HALF),
    ("product", "fp32"): lambda: multiplied(product, torch.float32),
    ("product", "bf16"): lambda: multiplied(product, HALF),
    ("norm", "fp32"): lambda: normed(torch.float32),
    ("norm", "bf16"): lambda: normed(HALF),
}
if library() is not None and direct() is not None:
    ENTRIES |= {(f"fast_call.c {name}", way): call for (name, way), call in IN_C.items()}


def forget():
    """Let tensors that are made once be made again, under the defaults of the moment."""
    cpu_module._handed.cache_clear()


def all_results():
    """Every entry's tensors, as they are under the defaults of the moment."""
    forget()
    return {entry: [part.clone() for part in call()] for entry, call in ENTRIES.items()}

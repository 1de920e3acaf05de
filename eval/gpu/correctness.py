"""The gate: every selector's kernels on the GPU against the fp64 reference, before anything is timed."""

from __future__ import annotations

from typing import Any

import torch

from geosparse.errors import GeosparseError
from geosparse.ops import SELECTORS, AttentionCall, Span, Terms, reference_attention
from geosparse.ops.triton import block_prefill, triton_attention
from geosparse.sparsify.block_prefill import BLOCK

CASES = [(1, 128, 1000), (3, 64, 333), (4, 128, 2049), (8, 256, 700)]
DTYPES = (torch.float32, torch.bfloat16)


def check(device: torch.device) -> list[dict[str, Any]]:
    """Errors of all selectors over groups, dimensions and dtypes; raises GeosparseError where one is too large."""
    rows = []
    for groups, dim, keys in CASES:
        for dtype in DTYPES:
            generator = torch.Generator(device).manual_seed(0)
            shapes = [(2, 2 * groups, 1, dim), (2, 2, keys, dim), (2, 2, keys, dim)]
            query, key, value = (
                torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
                for shape in shapes
            )
            n_keep = [1 + (37 * head) % (keys // 3) for head in range(2 * groups)]
            for selector in SELECTORS:
                arguments: dict[str, Any] = {"tail": "centroid", "selector": selector, "mask": Span((0, keys // 5))}
                fast = triton_attention(query, key, value, n_keep, scaling=dim**-0.5, **arguments)
                true = reference_attention(query, key, value, n_keep, scaling=dim**-0.5, **arguments)
                error = float((fast.output.double() - true.output).abs().max())
                rows.append(_row(selector, groups, dim, keys, dtype, error, value, torch.equal(fast.kept, true.kept)))
            rows.append(_prefill(groups, dim, dtype, device))
    wrong = [row for row in rows if not row["passed"]]
    if wrong:
        raise GeosparseError(f"The kernels differ from the reference, nothing was timed: {wrong[0]}.")
    return rows


def _prefill(groups: int, dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Block prefill against the same choice of blocks in plain torch, on keys that make the choice clear."""
    generator = torch.Generator(device).manual_seed(1)
    query = torch.randn(1, 2 * groups, 700, dim, generator=generator, device=device, dtype=torch.float32).to(dtype)
    key, value = (
        torch.randn(1, 2, 700, dim, generator=generator, device=device, dtype=torch.float32).to(dtype) for _ in range(2)
    )
    budgets = [700] * (2 * groups)
    fast = block_prefill(AttentionCall(query, key, value, None, None, Terms(dim**-0.5)), [700] * 2, BLOCK)
    true = reference_attention(query, key, value, budgets, tail="drop", scaling=dim**-0.5)
    error = float((fast.output.double() - true.output).abs().max())
    return _row("block prefill", groups, dim, 700, dtype, error, value, torch.equal(fast.kept, true.kept))


def _row(
    what: str, groups: int, dim: int, keys: int, dtype: torch.dtype, error: float, value: torch.Tensor, same: bool
) -> dict[str, Any]:
    # fp32: sums of up to 2049 products; half precision: weights and output are rounded once each.
    eps = 256 * torch.finfo(torch.float32).eps + (0.0 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)
    return {
        "what": what,
        "groups": groups,
        "dim": dim,
        "keys": keys,
        "dtype": str(dtype).removeprefix("torch."),
        "error": error,
        "allowed": eps * float(value.abs().max()),
        "same_count": same,
        "passed": same and error <= eps * float(value.abs().max()),
    }

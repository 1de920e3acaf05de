"""What `eval.speed` times besides single selectors: uneven budgets, exact prefill, and a call with nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from geosparse.artifacts.plan import Plan
from geosparse.errors import GeosparseError
from geosparse.ops import SELECTORS, AttentionCall, Selector, Terms
from geosparse.ops.cpu import library
from geosparse.ops.cpu.decode import pack
from geosparse.ops.cpu.handed import KernelRules
from geosparse.ops.key_index import index_of
from geosparse.ops.tails import shares_of

from ..harness.threads import torch_threads
from .layers import DTYPES, SHAPES, Layer, layers_of, ours_with, seconds

UNEVEN_REPEATS = 10
CALLED_SELECTORS: tuple[Selector, ...] = ("topn", "lowbit")  # of a call on one token


def uneven_budgets(shape_name: str, context: int, dtype_name: str, plan: Plan, selector: Selector) -> dict[str, Any]:
    """Time of the plan's budgets over that of even ones of the same sum, layer by layer, summed over its layers.

    The keys are random, so heads hardly share tokens and an equal sum is an equal number of bytes.
    """
    shape = SHAPES[shape_name]
    if plan.model.heads != shape[0]:
        raise GeosparseError(f"The plan is for {plan.model.heads} heads, {shape_name} has {shape[0]}.")
    layers = layers_of(shape, context, DTYPES[dtype_name])
    ragged = [tuple(row) for row in plan.n_keep.tolist()]
    even = [(round(sum(row) / len(row)),) * len(row) for row in ragged]
    ratios, totals = [], []
    for repeat in range(UNEVEN_REPEATS):
        spent = {"ragged": 0.0, "even": 0.0}
        for index, pair in enumerate(zip(ragged, even, strict=True)):
            for kind, budgets in zip(spent, pair, strict=True):
                # Each kind on a layer that was not read just before.
                layer = layers[(repeat + index + len(layers) // 2 * (kind == "even")) % len(layers)]
                run = ours_with(budgets, selector, "centroid", shape[2] ** -0.5)
                spent[kind] += seconds(partial(run, layer))
        ratios.append(spent["ragged"] / spent["even"])
        totals.append(spent["ragged"])
    return {
        "shape": shape_name,
        "context": context,
        "dtype": dtype_name,
        "selector": selector,
        "us_per_layer": float(torch.tensor(totals, dtype=torch.float32, device="cpu").median()) / len(ragged) * 1e6,
        "ragged_over_even": float(torch.tensor(ratios, dtype=torch.float32, device="cpu").median()),
    }


def prefill_time(shape_name: str, context: int, dtype_name: str, n_keep: int) -> dict[str, Any]:
    """Seconds of one layer's exact top-N prefill and of SDPA's dense one, medians of five in turns."""
    heads, kv_heads, dim = SHAPES[shape_name]
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, count, context, dim, generator=generator, dtype=torch.float32, device="cpu").to(
            DTYPES[dtype_name]
        )
        for count in (heads, kv_heads, kv_heads)
    )
    layer = Layer(2 * query, key, value)
    runs: dict[str, Callable[[], object]] = {
        "sdpa": lambda: torch.nn.functional.scaled_dot_product_attention(*layer, is_causal=True, enable_gqa=True),
        "exact": lambda: ours_with((n_keep,) * heads, "topn", "centroid", dim**-0.5)(layer),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(5):
        for name, run in runs.items():
            times[name].append(seconds(run))
    dense, exact = (
        float(torch.tensor(times[name], dtype=torch.float32, device="cpu").median()) for name in ("sdpa", "exact")
    )
    sizes = {"shape": shape_name, "context": context, "dtype": dtype_name, "n_keep": n_keep}
    return {**sizes, "sdpa_s": dense, "exact_s": exact, "exact_over_sdpa": exact / dense}


def overhead() -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of a call on one token with one thread, and of these what is spent outside the compiled kernel.

    The kernel has work even there, the attention of nine heads; its share is timed through ctypes, less an empty call.
    """
    loaded = library()
    assert loaded is not None
    with torch_threads(1):
        layer = layers_of((9, 3, 64), 1, torch.float32)[0]
        empty = _microseconds(loaded.gs_isa)
        calls: dict[str, float] = {}
        outside: dict[str, float] = {}
        budgets, tails = (
            torch.full((1, 9), 64, dtype=torch.int64, device="cpu"),
            torch.tensor([shares_of("centroid")] * 9, dtype=torch.float32, device="cpu"),
        )
        for selector in CALLED_SELECTORS:
            number = SELECTORS[selector].kernel
            assert number is not None
            selectors = torch.full((9,), number, dtype=torch.int64, device="cpu")
            index = index_of(layer.key, (0,)) if SELECTORS[selector].indexed else None
            packed, *held = pack(
                AttentionCall(*layer, None, None, Terms(0.125)), KernelRules(budgets, tails, selectors), index
            )
            kernel = _microseconds(partial(loaded.gs_decode, packed)) - empty
            del held  # where the kernel wrote
            calls[selector] = _microseconds(partial(ours_with((64,) * 9, selector, "centroid", 0.125), layer))
            outside[selector] = calls[selector] - kernel
        return calls, outside


def _microseconds(run: Callable[[], object]) -> float:
    return float(torch.tensor([seconds(run) for _ in range(1000)], dtype=torch.float32, device="cpu").median()) * 1e6

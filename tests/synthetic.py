"""Profiles made of random numbers: what the planner's tests run on."""

import torch

import geosparse as gs
from geosparse.artifacts.profile import ARRAYS, DIMENSIONS
from geosparse.artifacts.tail_moments import PARTS, TailMoments, pack
from geosparse.hf.identity import ModelIdentity


def synthetic(
    layers=2,
    heads=4,
    length=64,
    seed=0,
    limits=None,
    order=None,
    budgets=(1, 2, 4, 8, 16, 32),
    lengths=None,
    selectors=("topn",),
    kv_heads=None,
    tail_moments=False,
):
    """A profile of falling random curves; `order` permutes its heads; `lengths` are those of several windows; with
    `tail_moments` something to fit tails to."""
    lengths = tuple(lengths or (length, length))
    length = max(lengths)
    budgets = tuple(budget for budget in budgets if budget < length)
    sizes = {name: len(words) for name, words in DIMENSIONS.items()}
    sizes |= {"selectors": len(selectors), "layers": layers, "heads": heads, "budgets": len(budgets)}
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for name, dimensions in ARRAYS.items():
        array = torch.rand((len(lengths), *(sizes[dimension] for dimension in dimensions)), generator=generator)
        if "budgets" in dimensions:
            array = array.sort(dim=-1, descending=True).values
        if order is not None:
            array = array.index_select(1 + dimensions.index("heads"), torch.tensor(order))
        arrays[name] = array
    tails = None
    if tail_moments:
        shape = (len(lengths), len(selectors), layers, heads, len(budgets), 12, PARTS)
        parts = torch.randn(shape, generator=generator, dtype=torch.float64)
        # What is missed is mostly what the pages add, and less of it at larger N.
        parts[..., 0] = 0.9 * parts[..., 4] + 0.2 * parts[..., 1] + 0.1 * parts[..., 0]
        parts /= torch.tensor(budgets, dtype=torch.float64)[:, None, None] ** 0.5
        products = pack(parts.transpose(-1, -2) @ parts / 12)
        tails = TailMoments(products, 2 * products)
    return gs.Profile(
        arrays=arrays,
        tail_moments=tails,
        budgets=budgets,
        lengths=lengths,
        selectors=selectors,
        queries=8,
        limits=tuple(limits or [length] * layers),
        model=ModelIdentity("m", "A", layers, heads, kv_heads or heads, 8, "f"),
        calibration={"windows": 2, "lengths": [length], "sha256": "0"},
        nlls=(2.0,) * len(lengths),
    )

"""Quality of the selectors at equal N: loss over dense attention, error of each head's output, modelled bytes.

`python -m eval.studies.runtime.selectors smollm2-135m --text TEXT --lengths 2048,8192 --mean-keep 64 --out FOLDER`: of
every window the last `--scored` tokens are scored, the tokens before them are read densely once; all variants go on
from the same cache and score the same tokens, so that their differences are those of the selection.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.artifacts.plan import PlanTail
from geosparse.hf.interface import intercepted
from geosparse.hf.layers import attention_layers
from geosparse.ops import SELECTORS, AttentionCall
from geosparse.sparsify.attention import SparseAttention
from geosparse.sparsify.patch import rules_of
from geosparse.sparsify.receipt import Receipt
from geosparse.utils.console import whole, wholes
from geosparse.utils.intervals import mean_interval

from ...benchmarks.prompt import dense_prefix, windows
from ...benchmarks.shared_command import Add, Finding, Options, command
from .traffic import step_bytes

TAILS: tuple[PlanTail, ...] = ("renormalize", "centroid")
ERROR_QUERIES = 64
# Tokens of a block whose mean loss counts as one observation of the interval.
INTERVAL_BLOCK = 64


def variants(plan: gs.Plan) -> dict[str, gs.Plan]:
    """`plan` with every selector, and every tail that goes with it: "lowbit/centroid" and so on."""
    plans = {}
    for selector in SELECTORS:
        choices: tuple[PlanTail, ...] = TAILS if plan.head_tails is None and plan.tail_shares is None else (plan.tail,)
        for tail in choices if SELECTORS[selector].knows_rest else ("renormalize",):
            own: dict[str, Any] = {} if tail == plan.tail else {"head_tails": None, "tail_shares": None}
            plans[f"{selector}/{tail}"] = replace(plan, selector=selector, tail=tail, **own)
    return plans


def token_losses(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """NLL fp64 `[T - 1]` of `ids` `[1, T]` behind a filled cache, which is not changed."""
    with torch.no_grad():
        logits = model(ids[:, :-1], past_key_values=copy.deepcopy(cache), use_cache=True).logits[0]
    return torch.nn.functional.cross_entropy(logits.double(), ids[0, 1:], reduction="none")


@contextmanager
def observed(model: Any, plans: dict[str, gs.Plan]) -> Iterator[dict[str, torch.Tensor]]:
    """The model stays dense; the relative output error of each plan, `[layers, Hq]`, at the last queries of a pass."""
    layers = attention_layers(model)
    shape = next(iter(plans.values())).n_keep.shape
    errors = {name: torch.zeros(shape, dtype=torch.float64, device="cpu") for name in plans}

    def handler(index: int) -> Callable[..., torch.Tensor]:
        window = layers[index].window
        names = [layer.name for layer in layers]
        served = {
            name: SparseAttention(index, rules_of(plan, index, window), Receipt(plan.budgets, names))
            for name, plan in plans.items()
        }
        unlimited = gs.Plan.uniform(model, 2**30)
        dense = SparseAttention(index, rules_of(unlimited, index, window), Receipt(unlimited.budgets, names))
        dense.prefill = "dense"

        def attend(module: torch.nn.Module, call: AttentionCall) -> torch.Tensor:
            true = dense(module, call)
            last = call._replace(query=call.query[:, :, -ERROR_QUERIES:])
            target = true[:, :, -ERROR_QUERIES:].double()
            for name, attention in served.items():
                error = attention(module, last).double() - target
                errors[name][index] = (error.square().sum((0, 2, 3)) / target.square().sum((0, 2, 3))).sqrt()
            return true

        return attend

    with intercepted(model, {layer.module: handler(index) for index, layer in enumerate(layers)}):
        yield errors


def compare(model: Any, plans: dict[str, gs.Plan], texts: torch.Tensor, scored: int) -> dict[str, dict[str, Any]]:
    """All `plans` and dense attention on the last `scored` tokens of the windows `texts` `[W, L]`."""
    losses: dict[str, list[torch.Tensor]] = {name: [] for name in ("dense", *plans)}
    errors: dict[str, list[torch.Tensor]] = {name: [] for name in plans}
    counted: dict[str, float] = {}
    for window in texts:
        cache = dense_prefix(model, window[None, : -scored - 1])
        tail = window[None, -scored - 1 :]
        losses["dense"].append(token_losses(model, tail, cache))
        with observed(model, plans) as seen, torch.no_grad():
            model(tail[:, :-1], past_key_values=copy.deepcopy(cache), use_cache=True, logits_to_keep=1)
        for name, plan in plans.items():
            errors[name].append(seen[name])
            with gs.sparsified(model, plan) as receipt:
                losses[name].append(token_losses(model, tail, cache))
            counted[name] = receipt.mean_kept
            print(
                f"{texts.shape[1]} {name}: {float((losses[name][-1] - losses['dense'][-1]).mean()):+.5f}",
                flush=True,
            )
    table: dict[str, dict[str, Any]] = {}
    for name, plan in plans.items():
        difference = torch.cat(losses[name]) - torch.cat(losses["dense"])
        interval = mean_interval([float(block.mean()) for block in torch.split(difference, INTERVAL_BLOCK)])
        table[name] = {
            "excess_nll": float(difference.mean()),
            "excess_nll_interval": interval and list(interval),
            "mean_kept": counted[name],
            "output_error": float(torch.stack(errors[name]).mean()),
            "bytes_per_step": layer_bytes(model, plan, texts.shape[1]),
        }
    for name, row in table.items():
        exact = table.get(f"topn/{name.split('/')[1]}", {}).get("excess_nll")
        row["excess_over_topn"] = row["excess_nll"] / exact - 1 if exact else None
    dense = torch.cat(losses["dense"])
    table["dense"] = {"nll": float(dense.mean()), "bytes_per_step": layer_bytes(model, None, texts.shape[1])}
    return table


def layer_bytes(model: Any, plan: gs.Plan | None, length: int) -> int:
    """Modelled bytes of cache and index per decode step at `length` visible tokens, all layers together."""
    total = 0
    for index, layer in enumerate(attention_layers(model)):
        visible = min(length, layer.window or length)
        heads = [1] if plan is None else plan.n_keep[index].tolist()
        selector = None if plan is None else plan.selector
        if layer.window is not None and selector is not None and SELECTORS[selector].scans:
            selector = "topn"
        total += step_bytes(
            selector, heads, visible, layer.kv_heads, layer.key_dim, layer.value_dim, model.dtype.itemsize
        )
    return total


def describe(result: dict[str, Any]) -> str:
    """The tables as text."""
    lines = []
    for group in result["tables"]:
        dense = group["variants"]["dense"]
        lines.append(f"{group['budget']}, length {group['length']}: dense NLL {dense['nll']:.4f}")
        for name, row in group["variants"].items():
            if name != "dense":
                low, high = row["excess_nll_interval"] or (math.nan, math.nan)
                more = "" if row["excess_over_topn"] is None else f"{row['excess_over_topn']:+.1%}"
                lines.append(
                    f"  {name:<24} {row['excess_nll']:+.5f} [{low:+.5f}, {high:+.5f}]  {more:>7} "
                    f"error {row['output_error']:.4f}  {row['bytes_per_step'] / dense['bytes_per_step']:6.1%} of bytes"
                )
    return "\n".join(lines)


def study(options: Options, model: Any, tokenizer: Any) -> Iterator[Finding]:
    """A file per length, with a table per plan."""
    planned = "-planned" if options.plan is not None and options.mean_keep is None else ""
    plans = {}
    if options.mean_keep is not None or options.plan is None:
        keep = 64 if options.mean_keep is None else options.mean_keep
        plans[f"uniform {keep}"] = gs.Plan.uniform(model, keep)
    if options.plan is not None:
        plan = gs.Plan.load(options.plan)
        plans[f"{plan.policy} {plan.mean_keep:g}"] = plan
    for length, count in zip(options.lengths, options.windows, strict=True):
        parts = windows(tokenizer, options.text, length, count)
        tables = []
        for budget, plan in plans.items():
            table = compare(model, variants(plan), parts, options.scored)
            tables.append({"budget": budget, "length": length, "windows": count, "variants": table})
        result = {"scored": options.scored, "tables": tables}
        yield Finding(f"selectors-{length}{planned}.json", result, describe(result))


def flags(add: Add) -> None:
    """Those of this study."""
    add("--lengths", type=wholes(2), default=(2048, 8192), help="tokens per window, comma-separated")
    add("--windows", type=wholes(1), default=(2, 1), help="windows of each length, comma-separated")
    add("--scored", type=whole(1), default=512, help="tokens scored at the end of each window (512)")
    add("--mean-keep", type=whole(1), help="N of every head (64; none where a plan is given)")
    add("--plan", type=Path, help="a plan to compare the selectors with")


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return command("eval.studies.runtime.selectors", "selectors", __doc__, flags, study, arguments)


if __name__ == "__main__":
    sys.exit(main())

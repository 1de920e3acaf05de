"""How two plans for one model differ: which heads changed, by how much, and whether their order stayed."""

from __future__ import annotations

import operator
from typing import Any

import torch

from ..artifacts.plan import Plan
from ..errors import GeosparseError
from ..ops.tails import TailShares

SETTINGS = ("tail", "selector", "share_kv", "policy", "budget", "reference_length", "calibration")
MOST_HEADS = 10


def compare_plans(before: Plan, after: Plan) -> dict[str, Any]:
    """The differences of two plans, as a JSON object.

    Returns:
        `model`; `settings`: the settings that differ, each `[before, after]`; `mean_keep`: `[before, after]`;
        `change`: mean, median and max of |N after - N before| over heads, tokens; `changed` and `heads`: how many heads
        changed, of how many; `tails_changed`: how many heads have another tail; `rank_correlation`: Spearman's, or None
        where all N of a plan are equal; `most_changed`: the heads with the largest change, most first, each
        `{layer, head, before, after}`.

    Raises:
        GeosparseError: The plans are for different models.
    """
    difference = before.model.difference(after.model)
    if difference:
        raise GeosparseError(
            f"The plans are for different models, {before.model.name} and {after.model.name}: they differ in "
            f"{difference}; give two plans for one model."
        )
    change = (after.n_keep - before.n_keep).abs().flatten()
    return {
        "model": before.model.to_json(),
        "settings": _settings(before, after),
        "mean_keep": [before.mean_keep, after.mean_keep],
        "change": {
            "mean": float(change.double().mean()),
            "median": float(change.double().quantile(0.5)),
            "max": int(change.max()),
        },
        "changed": int((change > 0).sum()),
        "heads": change.numel(),
        "tails_changed": sum(map(operator.ne, _head_tails(before), _head_tails(after))),
        "rank_correlation": rank_correlation(before.n_keep, after.n_keep),
        "most_changed": _most_changed(before, after, change),
    }


def rank_correlation(a: torch.Tensor, b: torch.Tensor) -> float | None:
    """Spearman's correlation of two tensors of one shape; equal values share their mean rank, None if all are equal."""
    from scipy.stats import spearmanr

    if any(bool((values == values.flatten()[0]).all()) for values in (a, b)):
        return None
    # Rounded, because equal plans would else have 0.9999999999999999.
    return round(float(spearmanr(a.flatten().numpy(), b.flatten().numpy()).statistic), 12)


def _head_tails(plan: Plan) -> list[str | TailShares]:
    """The tail of every head, layer by layer."""
    layers = map(plan.tails_of, range(plan.model.layers))
    return [tail for tails in layers for tail in ([tails] * plan.model.heads if isinstance(tails, str) else tails)]


def _settings(before: Plan, after: Plan) -> dict[str, list[Any]]:
    pairs = {name: [getattr(before, name), getattr(after, name)] for name in SETTINGS}
    pairs["model_name"] = [before.model.name, after.model.name]
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _most_changed(before: Plan, after: Plan, change: torch.Tensor) -> list[dict[str, int]]:
    order = change.argsort(descending=True, stable=True)[:MOST_HEADS].tolist()
    positions = [divmod(index, before.model.heads) for index in order if change[index] > 0]
    return [
        {
            "layer": layer,
            "head": head,
            "before": int(before.n_keep[layer, head]),
            "after": int(after.n_keep[layer, head]),
        }
        for layer, head in positions
    ]


def describe_comparison(data: dict[str, Any]) -> str:
    """A result of `compare_plans` as text for a terminal."""
    change, correlation, mean = data["change"], data["rank_correlation"], data["mean_keep"]
    order = "none, all N of a plan are equal" if correlation is None else f"{correlation:.3f}"
    lines = [
        f"Two plans for {data['model']['name']}: {data['changed']} of {data['heads']} heads differ",
        *(f"  {name}: {before} -> {after}" for name, (before, after) in data["settings"].items()),
        f"  mean N {mean[0]:.2f} -> {mean[1]:.2f}",
        f"  change of N: mean {change['mean']:.2f}, median {change['median']:g}, max {change['max']}",
        f"  heads with another tail: {data['tails_changed']}",
        f"  rank correlation of N: {order}",
    ]
    if data["most_changed"]:
        lines.append("most changed: layer, head, N")
    lines += [
        f"  {row['layer']:>3} {row['head']:>3}  {row['before']} -> {row['after']}" for row in data["most_changed"]
    ]
    return "\n".join(lines)

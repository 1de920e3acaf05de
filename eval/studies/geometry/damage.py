"""Which metric tells what a head costs? Each one against the measured loss of sparsifying that head alone.

`python -m eval.studies.geometry.damage smollm2-135m --text FILE --out results/geometry/smollm2-135m`
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import Any

import torch

from geosparse.artifacts.profile import Profile
from geosparse.hf.layers import attention_layers
from geosparse.ops import TAILS, Tail
from geosparse.profile.profiler import ProfileConfig, profile_model
from geosparse.utils.console import whole, wholes
from geosparse.utils.progress import track

from ...statistics import bootstrap, spearman
from .one_head import HeadTrial, one_head_losses
from .shared_command import Text, main, parser, rounded, windows_of

# The sign that a metric would have if it told damage: more of it, more damage (+1) or less (-1).
METRICS = {
    "f1": -1,
    "excess_f1": -1,
    "margin": -1,
    "kept_mass": -1,
    "entropy": 1,
    "output_error": 1,
    "fisher": 1,
}


def measured(
    model: Any, windows: torch.Tensor, heads: torch.Tensor, budgets: list[int], tail: Tail
) -> tuple[torch.Tensor, float]:
    """Damage `[W, heads, budgets]` in nats per token of each head of `heads` `[H, 2]` (layer, head), and dense loss."""
    trials = [HeadTrial(layer, head, budget) for layer, head in heads.tolist() for budget in budgets]
    rows, dense = [], []
    for window in track(list(windows), f"damage, {tail}"):
        loss, losses = one_head_losses(model, window, trials, tail)
        rows.append([losses[trial] - loss for trial in trials])
        dense.append(loss)
    table = torch.tensor(rows, dtype=torch.float64, device="cpu").view(len(windows), len(heads), len(budgets))
    return table, sum(dense) / len(dense)


def metrics_of(profile: Profile, heads: torch.Tensor, budgets: list[int], tail: Tail) -> dict[str, torch.Tensor]:
    """Every metric `[heads, budgets]` of the profile."""
    columns = [profile.budgets.index(budget) for budget in budgets]
    tables = {
        "f1": profile.geometry("f1").nanmean(0),
        "excess_f1": profile.excess_f1().nanmean(0),
        "margin": profile.geometry("margin").nanmean(0),
        "kept_mass": profile.kept_mass(),
        "entropy": profile.mean("entropy").unsqueeze(-1).expand(-1, -1, len(profile.budgets)),
        "output_error": profile.relative_output_error(tail),
        "fisher": profile.fisher(tail),
    }
    return {name: table[heads[:, 0], heads[:, 1]][:, columns] for name, table in tables.items()}


def over_heads(metric: torch.Tensor, damage: torch.Tensor) -> dict[str, Any]:
    """Spearman over heads of `metric` `[H]` and `damage` `[H]`, with a bootstrap interval over heads."""
    interval = bootstrap(lambda rows: spearman(metric[rows], damage[rows]), len(metric), seed=0)
    return {"spearman": spearman(metric, damage), "interval": interval and list(interval)}


def each_budget(metrics: dict[str, torch.Tensor], damage: torch.Tensor) -> dict[str, list[dict[str, Any]]]:
    """`over_heads` of every metric `[H, budgets]` at each budget."""
    return {
        name: [over_heads(*columns) for columns in zip(metric.T, damage.T, strict=True)]
        for name, metric in metrics.items()
    }


def along_n(metric: torch.Tensor, damage: torch.Tensor) -> dict[str, Any]:
    """The mean over heads of Spearman along N, of `[H, budgets]` both, with a bootstrap interval over heads."""
    each = torch.tensor(
        [spearman(*pair) for pair in zip(metric, damage, strict=True)], dtype=torch.float64, device="cpu"
    )
    interval = bootstrap(lambda rows: float(each[rows].nanmean()), len(each), seed=0)
    known = int(torch.isfinite(each).sum())
    return {"spearman": float(each.nanmean()), "interval": interval and list(interval), "heads": known}


def study(model: Any, tokenizer: Any, texts: dict[str, Text], options: argparse.Namespace) -> dict[str, Any]:
    """The whole result, as JSON: metrics on `--text`, damage on the same windows and on those of `--other`."""
    windows = {role: windows_of(tokenizer, texts[role], options.length, options.windows) for role in options.roles}
    config = ProfileConfig(
        length=options.length,
        windows=options.windows,
        queries=options.queries,
        geometry_queries=options.queries,
        budgets=tuple(options.budgets),
        seed=options.seed,
        kinds=(),
    )
    profile = profile_model(model, tokenizer, texts["text"].texts, config, show_progress=True)
    heads = sample_heads(len(attention_layers(model)), profile.model.heads, options.heads, options.seed)
    result: dict[str, Any] = {"heads": heads.tolist(), "budgets": options.budgets, "signs": METRICS, "tails": {}}
    for tail in [tail for tail in TAILS if tail in options.tails]:
        metrics = metrics_of(profile, heads, options.budgets, tail)
        part: dict[str, Any] = {}
        for role in options.roles:
            table, dense = measured(model, windows[role], heads, options.budgets, tail)
            damage = table.mean(0)
            part[role] = {
                "dense_nll": dense,
                "damage": damage,
                "share_of_worst_tenth": worst_share(damage),
                "over_heads": each_budget(metrics, damage),
                # A sparse head may also lower the loss; a squared error knows how much, not which way.
                "over_heads_absolute": each_budget(metrics, table.abs().mean(0)),
                "along_n": {name: along_n(metric, damage) for name, metric in metrics.items() if name != "entropy"},
            }
        result["tails"][tail] = part
    return rounded(result)


def sample_heads(layers: int, heads: int, count: int, seed: int) -> torch.Tensor:
    """`count` different heads (or all) as rows of layer and head, in order."""
    picks = (
        torch.randperm(layers * heads, generator=torch.Generator().manual_seed(seed), dtype=torch.int64, device="cpu")[
            :count
        ]
        .sort()
        .values
    )
    return torch.stack([picks // heads, picks % heads], 1)


def worst_share(damage: torch.Tensor) -> list[float]:
    """Per N the part of all damage that the worst tenth of the heads causes (negative damage counts as none)."""
    fall = damage.clamp_min(0.0).sort(dim=0, descending=True).values
    worst = math.ceil(len(fall) / 10)
    shares: list[float] = (fall[:worst].sum(0) / fall.sum(0).clamp_min(1e-300)).tolist()
    return shares


def describe(result: dict[str, Any]) -> str:
    """One table per tail and text."""
    lines = []
    for tail, part in result["tails"].items():
        for role, table in part.items():
            names = "".join(f"   N={budget:<18}" for budget in result["budgets"])
            for kind, what in (("over_heads", "the measured damage"), ("over_heads_absolute", "its absolute value")):
                lines.append(f"{tail}, {role}: Spearman over {len(result['heads'])} heads with {what}")
                lines.append(f"{'':<14}{names}   along N")
                for name, cells in table[kind].items():
                    row = "".join(f"  {_cell(cell):<20}" for cell in cells)
                    lines.append(f"{name:<14}{row}  {_cell(table['along_n'].get(name))}")
    return "\n".join(lines)


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None or cell["spearman"] is None:
        return "-"
    ends = cell["interval"]
    return f"{cell['spearman']:+.2f}" + ("" if ends is None else f" [{ends[0]:+.2f}, {ends[1]:+.2f}]")


def words(text: str) -> list[str]:
    """Comma-separated words."""
    return [word for word in text.split(",") if word]


def run(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = parser("damage", __doc__.splitlines()[0])
    given.set_defaults(length=512, windows=4)
    given.add_argument("--heads", type=whole(1), default=64, help="heads to sample, spread over the model (64)")
    given.add_argument("--budgets", type=wholes(1), default=(2, 8, 32, 128), help="the N (2,8,32,128)")
    given.add_argument("--tails", type=words, default=["renormalize"], help="drop, renormalize, centroid (renormalize)")
    given.add_argument("--roles", type=words, default=["text"], help="where damage is measured: text, other (text)")
    return main("damage", given.parse_args(arguments), study, describe)


if __name__ == "__main__":
    sys.exit(run())

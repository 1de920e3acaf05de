"""What 2609.37879 found, on a model at hand: separation above random, the small-N regime, N* by loss.

`python -m eval.studies.geometry.findings smollm2-135m --text FILE --out results/geometry/smollm2-135m`
"""

from __future__ import annotations

import argparse
import math
import sys
from itertools import pairwise
from typing import Any

import torch

from geosparse.artifacts.plan import Plan
from geosparse.artifacts.profile import METRICS
from geosparse.measure.loss import sparse_nll, token_nll
from geosparse.ops import Tail
from geosparse.profile.arrays import metrics
from geosparse.profile.capture import walk_layers
from geosparse.profile.sampling import sample_positions, window_generator
from geosparse.utils.console import whole, wholes
from geosparse.utils.progress import track

from ...statistics import bootstrap_interval, spearman
from .shared_command import Text, main, parser, rounded, windows_of

TAILS: tuple[Tail, ...] = ("drop", "renormalize")
# Budgets end at L / 2; the small ones at this fraction of that.
SMALL_BUDGET_DIVISOR = 8
TOLERANCES = (0.01, 0.05, 0.1)
# N* at 5 % NLL, deletion, L = 1024, OpenWebText, as arXiv 2609.37879 prints it.
PUBLISHED = {
    "Qwen-2.5-7B": 33,
    "Gemma-7B": 226,
    "Llama-2-7B": 85,
    "Llama-3.2-1B": 18,
    "Llama-3-8B": 16,
    "Mistral-7B": 14,
}


def separation_of(model: Any, windows: torch.Tensor, budgets: list[int], options: argparse.Namespace) -> torch.Tensor:
    """F of attention-ranked and random sets, `[2, W, layers, Hq, budgets]`, means over sampled queries (Euclidean)."""
    length = windows.shape[1]
    windows_metrics = []
    for index, window in enumerate(track(list(windows), f"F at {length}")):
        generator = window_generator(options.seed, length, index)
        positions = sample_positions(length, options.queries, generator)
        layers = []
        for item in walk_layers(model, window, positions):
            noise = torch.rand(
                options.random_sets, len(positions), length, generator=generator, dtype=torch.float32, device="cpu"
            )
            heads = []
            for rows in item.groups():
                keys = slice(rows.start, rows.start + rows.alpha.shape[-1])
                f1 = metrics(rows, budgets, noise[..., keys])[METRICS.index("f1"), 0]
                heads.append(torch.stack([f1[0].nanmean(1), f1[2:].nanmean((0, 2))]))
            layers.append(torch.cat(heads, 1))
        windows_metrics.append(torch.stack(layers, 1))
    return torch.stack(windows_metrics, 1).double()


def above_random(f1: torch.Tensor, budgets: list[int]) -> list[dict[str, Any]]:
    """Per N the mean over heads of F, of random F and of their difference, with its bootstrap interval over windows."""
    per_window = f1.nanmean((2, 3))
    excess = per_window[0] - per_window[1]
    interval = bootstrap_interval(excess)
    rows = []
    for column, budget in enumerate(budgets):
        ends = None if interval is None else [float(end[column]) for end in interval]
        rows.append(
            {
                "n_keep": budget,
                "trivial": budget == 1,
                "f1": float(per_window[0, :, column].nanmean()),
                "random_f1": float(per_window[1, :, column].nanmean()),
                "excess": float(excess[:, column].nanmean()),
                "interval": ends,
                "above_zero": ends is not None and ends[0] > 0,
            }
        )
    return rows


def operating_regime(f1: torch.Tensor, budgets: list[int]) -> dict[str, Any]:
    """Per head the N >= 2 of largest F in excess of random: how many heads at each N, their median and quartiles.

    Once over all budgets, up to L / 2, and once over the small ones, up to L / 16: F rises again where N nears L.
    """
    excess = (f1[0] - f1[1]).nanmean(0).flatten(0, 1)
    result: dict[str, Any] = {}
    for name, most in (("all", max(budgets)), ("small", max(budgets) // SMALL_BUDGET_DIVISOR)):
        columns = [column for column, budget in enumerate(budgets) if 2 <= budget <= most]
        best = excess[:, columns].nan_to_num(nan=-math.inf).argmax(-1)
        chosen = torch.tensor([budgets[column] for column in columns], dtype=torch.float64, device="cpu")[best]
        quartiles = [float(torch.quantile(chosen, q, interpolation="nearest")) for q in (0.25, 0.5, 0.75)]
        counts = {str(budgets[column]): int((best == index).sum()) for index, column in enumerate(columns)}
        result[name] = {"quartiles": quartiles, "heads": counts}
    return result


def loss_curve(model: Any, windows: torch.Tensor, tail: Tail) -> dict[int, list[float]]:
    """Uniform N = 2, 4, ... -> relative NLL damage of each window; ends where it is below the least tolerance."""
    dense = token_nll(model, windows).double().mean(1)
    curve: dict[int, list[float]] = {}
    budget = 2
    while budget < windows.shape[1]:
        nll = sparse_nll(model, Plan.uniform(model, budget, tail), windows)[0].double().mean(1)
        curve[budget] = ((nll - dense) / dense.mean()).tolist()
        if sum(curve[budget]) / len(curve[budget]) < TOLERANCES[0] / 2:
            break
        budget *= 2
    return curve


def effective_n(curve: dict[int, float], tolerance: float, length: int) -> float:
    """The N at which damage falls to `tolerance` for good, between budgets by a line over log N; `length` costs 0."""
    points = [*sorted(curve.items()), (length, 0.0)]
    for (low, before), (high, after) in reversed(list(pairwise(points))):
        if before > tolerance >= after:
            share = (before - tolerance) / (before - after)
            return math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
    return float(points[0][0])


def loss_study(model: Any, windows: torch.Tensor, tail: Tail) -> dict[str, Any]:
    """The damage curve at one length and N* at each tolerance with its bootstrap interval over windows."""
    length = windows.shape[1]
    curve = loss_curve(model, windows, tail)
    table = torch.tensor(list(curve.values()), dtype=torch.float64, device="cpu")
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(table.shape[1], (500, table.shape[1]), generator=generator, dtype=torch.int64, device="cpu")
    stars = {}
    for tolerance in TOLERANCES:

        def star(rows: torch.Tensor, tolerance: float = tolerance) -> float:
            damage = table[:, rows].mean(1).tolist()
            return effective_n(dict(zip(curve, damage, strict=True)), tolerance, length)

        several = torch.tensor([star(rows) for rows in picks], dtype=torch.float64, device="cpu")
        ends = torch.quantile(several, torch.tensor([0.025, 0.975], dtype=torch.float64, device="cpu")).tolist()
        n_star = star(torch.arange(table.shape[1], dtype=torch.int64, device="cpu"))
        stars[f"{tolerance:g}"] = {
            "n_star": n_star,
            "interval": ends if table.shape[1] > 1 else None,
            "share": n_star / length,
        }
    means = {str(budget): float(row.mean()) for budget, row in zip(curve, table, strict=True)}
    return {"damage": means, "n_star": stars, "windows": table.shape[1]}


def study(model: Any, tokenizer: Any, texts: dict[str, Text], options: argparse.Namespace) -> dict[str, Any]:
    """The whole result, as JSON."""
    lengths = sorted(options.lengths)
    result: dict[str, Any] = {"published_n_star_5_percent_drop_1024": PUBLISHED, "f1": {}, "regime": {}, "loss": {}}
    f1: dict[int, torch.Tensor] = {}
    for length in sorted({*lengths, *options.regime_lengths, options.length}):
        count = options.windows if length == options.length else max(1, options.tokens // length)
        windows = windows_of(tokenizer, texts["text"], length, count)
        budgets = [2**exponent for exponent in range(1, int(math.log2(length)))]
        f1[length] = separation_of(model, windows, budgets, options)
        result["regime"][str(length)] = operating_regime(f1[length], budgets)
        if length == options.length:
            result["f1"]["text"] = above_random(f1[length], budgets)
            others = windows_of(tokenizer, texts["other"], length, options.windows)
            result["f1"]["other"] = above_random(separation_of(model, others, budgets, options), budgets)
    for length in lengths:
        windows = windows_of(tokenizer, texts["text"], length, max(1, options.tokens // length))
        result["loss"][str(length)] = {tail: loss_study(model, windows, tail) for tail in TAILS}
    result["spearman_f1_damage_along_n"] = {
        str(length): {tail: _along(f1[length], result["loss"][str(length)][tail]["damage"]) for tail in TAILS}
        for length in lengths
    }
    return rounded(result)


def _along(f1: torch.Tensor, damage: dict[str, float]) -> dict[str, float]:
    """Spearman over N of F, and of F in excess of random, with the damage; N where both were measured."""
    budgets = [int(budget) for budget in damage]
    columns = [int(math.log2(budget)) - 1 for budget in budgets]
    means = f1.nanmean((1, 2, 3))[:, columns]
    loss = torch.tensor(list(damage.values()), dtype=torch.float64, device="cpu")
    return {
        "f1": spearman(means[0], loss),
        "excess": spearman(means[0] - means[1], loss),
        "budgets": len(budgets),
    }


def describe(result: dict[str, Any]) -> str:
    """The result as short tables."""
    lines = ["    N        F   random   excess [95 % over windows]"]
    for row in result["f1"]["text"]:
        ends = row["interval"] or [math.nan, math.nan]
        numbers = f"{row['f1']:8.4f} {row['random_f1']:8.4f} {row['excess']:8.4f}"
        lines.append(f"{row['n_keep']:>5} {numbers} [{ends[0]:.4f}, {ends[1]:.4f}]")
    lines.append("    L   N of largest excess F: quartiles over heads (all N; small N)")
    for length, row in result["regime"].items():
        lines.append(f"{length:>5}   {row['all']['quartiles']}   {row['small']['quartiles']}")
    lines.append("    L  tail          N* at 1 %, 5 %, 10 % NLL (share of L)")
    for length, tails in result["loss"].items():
        for tail, part in tails.items():
            cells = "  ".join(f"{star['n_star']:7.1f} ({star['share']:.3f})" for star in part["n_star"].values())
            lines.append(f"{length:>5}  {tail:<12} {cells}")
    lines.append("published, 5 %, drop, L = 1024: " + ", ".join(f"{k} {v}" for k, v in PUBLISHED.items()))
    for length, tails in result["spearman_f1_damage_along_n"].items():
        cells = ", ".join(f"{tail} F {part['f1']}, excess {part['excess']}" for tail, part in tails.items())
        lines.append(f"Spearman with damage along N at {length}: {cells}")
    return "\n".join(lines)


def run(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = parser("findings", __doc__.splitlines()[0])
    given.set_defaults(queries=8)
    given.add_argument("--lengths", type=wholes(8), default=(256, 512, 1024, 2048), help="lengths of the losses")
    given.add_argument("--regime-lengths", type=wholes(8), default=(), help="further lengths of the regime")
    given.add_argument(
        "--tokens", type=whole(8), default=4096, help="tokens per length, in windows of that length (4096)"
    )
    given.add_argument("--random-sets", type=whole(1), default=8, help="random rankings per query (8)")
    return main("findings", given.parse_args(arguments), study, describe)


if __name__ == "__main__":
    sys.exit(run())

"""Regimes of a model: how stable they are across texts, seeds and lengths, where they sit, and what they are worth.

python -m eval.studies.geometry.regimes smollm2-135m --text a.txt --other b.txt --out results/geometry/smollm2-135m
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from geosparse.geometry.regimes import REGIMES, SIGNATURES, Regimes, classify, shares_by_layer, signatures, typical
from geosparse.measure.loss import token_nll
from geosparse.utils.console import whole
from geosparse.utils.intervals import mean_interval
from geosparse.utils.progress import track

from ...statistics import bootstrap, cohen_kappa, spearman
from . import ablation
from .shared_command import Text, each_window, main, parser, rounded, windows_of

UNCLEAR_LABEL = REGIMES.index("unclear")


def measure(model: Any, windows: torch.Tensor, queries: int, seed: int, what: str) -> torch.Tensor:
    """Signatures `[W, layers, Hq, len(SIGNATURES)]` of the model on `windows` `[W, L]`."""
    per_window: list[list[torch.Tensor]] = [[] for _ in windows]

    def visitor(index: int, generator: torch.Generator) -> Any:
        def visit(layer: int, alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> None:
            per_window[index].append(signatures(alpha, value, seen, generator))

        return visit

    each_window(model, windows, queries, seed, visitor, what)
    return torch.stack([torch.stack(layers) for layers in per_window])


def agreement(first: torch.Tensor, second: torch.Tensor) -> dict[str, Any]:
    """Kappa over all heads, unclear being a class of its own, with a bootstrap interval over heads; and over the heads
    that are clear in both.
    """
    first, second = first.flatten(), second.flatten()
    clear = (first != UNCLEAR_LABEL) & (second != UNCLEAR_LABEL)
    return {
        "kappa": cohen_kappa(first, second),
        "kappa_interval": bootstrap(lambda rows: cohen_kappa(first[rows], second[rows]), len(first), seed=0),
        "kappa_clear": cohen_kappa(first[clear], second[clear]) if bool(clear.any()) else None,
        "clear_share": float(clear.double().mean()),
    }


def study(model: Any, tokenizer: Any, texts: dict[str, Text], options: argparse.Namespace) -> dict[str, Any]:
    """The whole result, as JSON."""
    length, count, queries, seed = options.length, options.windows, options.queries, options.seed
    windows = {role: windows_of(tokenizer, text, length, count) for role, text in texts.items()}
    short = windows_of(tokenizer, texts["text"], options.short, count)
    measured = {role: measure(model, part, queries, seed, role) for role, part in windows.items()}
    measured["other seed"] = measure(model, windows["text"], queries, seed + 1, "other seed")
    measured[f"length {options.short}"] = measure(model, short, queries, seed, f"length {options.short}")
    medians = {name: typical(part) for name, part in measured.items()}
    regimes = {name: classify(part) for name, part in medians.items()}
    label = regimes["text"].label
    names = [name for name in regimes if name != "text"]
    result: dict[str, Any] = {
        "windows": {role: len(part) for role, part in windows.items()},
        "stability": {name: agreement(label, regimes[name].label) for name in names},
        "signature_spearman": {
            name: {
                signature: spearman(medians["text"][..., index].flatten(), medians[name][..., index].flatten())
                for index, signature in enumerate(SIGNATURES)
            }
            for name in names
        },
        "shares": _shares(label),
        "signatures_by_regime": _by_regime(medians["text"], label),
        "heads": _heads(medians["text"], regimes["text"]),
        "other_labels": {name: _letters(regimes[name].label) for name in names},
    }
    if options.draws > 0:
        result["worth"] = worth(
            model, windows_of(tokenizer, texts["other"], options.short, options.worth), label, options
        )
    return rounded(result)


def worth(model: Any, windows: torch.Tensor, label: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Excess loss when heads of one regime are starved or silenced, minus the same for as many random heads.

    Every set has the size of the smallest regime that has 2 heads or more, so that regimes can be compared; draws are
    averaged, differences are paired over windows (Student's t).
    """
    dense = token_nll(model, windows, "dense", True)
    sizes = {regime: int((label == index).sum()) for index, regime in enumerate(REGIMES[:UNCLEAR_LABEL])}
    count = min((size for size in sizes.values() if size >= 2), default=0)
    groups = {regime: label == index for index, regime in enumerate(REGIMES) if sizes.get(regime, 0) >= 2}
    groups["random"] = torch.ones_like(label, dtype=torch.bool)
    jobs = [(mode, group, draw) for mode in ablation.MODES for group in groups for draw in range(options.draws)]
    per_window: dict[tuple[str, str], list[torch.Tensor]] = {}
    for mode, group, draw in track(jobs, "starve and silence"):
        generator = torch.Generator().manual_seed(options.seed * 7919 + draw)
        heads = ablation.some_of(groups[group], count, generator)
        per_window.setdefault((mode, group), []).append(ablation.damage(model, windows, heads, mode, dense))
    table: dict[str, Any] = {}
    for (mode, group), draws in per_window.items():
        mean = torch.stack(draws).mean(0)
        against = mean - torch.stack(per_window[mode, "random"]).mean(0)
        table.setdefault(mode, {})[group] = {
            "excess_nll": float(mean.mean()),
            "excess_nll_interval": mean_interval(mean.tolist()),
            "draws": [float(draw.mean()) for draw in draws],
        }
        if group != "random":
            table[mode][group]["minus_random"] = float(against.mean())
            table[mode][group]["minus_random_interval"] = mean_interval(against.tolist())
    return {"heads_per_set": count, "windows": len(windows), "length": windows.shape[1], "sizes": sizes, **table}


def _shares(label: torch.Tensor) -> dict[str, Any]:
    by_layer = shares_by_layer(label)
    return {
        "model": dict(zip(REGIMES, by_layer.mean(0).tolist(), strict=True)),
        "by_layer": by_layer,
        "spearman_with_depth": dict(zip(REGIMES, map(_with_depth, by_layer.T), strict=True)),
    }


def _with_depth(share: torch.Tensor) -> dict[str, Any]:
    """Rank correlation of a share `[layers]` with the layer's place, bootstrapped over layers."""
    depth = torch.arange(len(share), dtype=torch.float64, device="cpu")
    interval = bootstrap(lambda rows: spearman(depth[rows], share[rows]), len(share), seed=0)
    return {"rho": spearman(depth, share), "interval": interval}


def _by_regime(medians: torch.Tensor, label: torch.Tensor) -> dict[str, Any]:
    return {
        regime: dict(zip(SIGNATURES, medians[label == index].nanmean(0).tolist(), strict=True))
        for index, regime in enumerate(REGIMES)
        if bool((label == index).any())
    }


def _heads(medians: torch.Tensor, regimes: Regimes) -> dict[str, Any]:
    columns = {name: medians[..., index] for index, name in enumerate(SIGNATURES)}
    return {"regime": _letters(regimes.label)} | rounded({"confidence": regimes.confidence} | columns, 3)


def _letters(label: torch.Tensor) -> list[str]:
    """A word per layer, a letter per head: r etriever, m ixer, s for reset (sink), - unclear."""
    return ["".join("rms-"[index] for index in row) for row in label.tolist()]


def describe(result: dict[str, Any]) -> str:
    """The short table."""
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in result["shares"]["model"].items())
    lines = [f"Regimes of {result['model']['name']}: {shares}"]
    for name, row in result["stability"].items():
        clear = "" if row["kappa_clear"] is None else f", over heads clear in both {row['kappa_clear']:.3f}"
        lines.append(f"  kappa against {name:<12} {row['kappa']:.3f}{_interval(row['kappa_interval'], '.3f')}{clear}")
    for mode in ablation.MODES if "worth" in result else ():
        lines.append(f"{mode} {result['worth']['heads_per_set']} heads: excess NLL, and minus that of random heads")
        for group, row in result["worth"][mode].items():
            versus = ""
            if "minus_random" in row:
                versus = f"  {row['minus_random']:+.4f}{_interval(row['minus_random_interval'], '+.4f')}"
            lines.append(f"  {group:<10} {row['excess_nll']:+.4f}{versus}")
    return "\n".join(lines)


def _interval(edges: list[float] | None, form: str) -> str:
    return "" if edges is None else f" [{edges[0]:{form}}, {edges[1]:{form}}]"


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    options = parser("regimes", "stability, place and worth of head regimes")
    options.add_argument(
        "--short", type=whole(8), default=512, help="another length, and that of the windows of --worth (512)"
    )
    options.add_argument(
        "--draws", type=whole(0), default=4, help="random sets of heads to starve and silence; 0 skips it (4)"
    )
    options.add_argument("--worth", type=whole(1), default=6, help="windows on which sets of heads are starved (6)")
    return options.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main("regimes", options_of(), study, describe))

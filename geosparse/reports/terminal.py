"""What the commands print: each artifact or result as a JSON object and as text for a terminal."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ..artifacts.plan import Plan
from ..artifacts.profile import BUILT_IN, METRICS, Profile
from ..geometry.regimes import REGIMES
from ..hf.aliases import weights_line, weights_of
from ..ops import TAILS
from ..utils.files import check_readable, finite_or_none, os_errors_as
from .bands import Bands
from .heads import assumptions, head_facts

Described = tuple[dict[str, Any], str]
SHOWN = ("drop", "renormalize", "centroid", "blend50")
"""Tails that have a column on a terminal; JSON has all."""


def is_profile(path: Path) -> bool:
    """Whether a file is a profile and not a plan: safetensors starts with a length, JSON never holds a zero."""
    check_readable(path)
    with os_errors_as("read", path), path.open("rb") as file:
        return b"\0" in file.read(8)


def describe_plan(plan: Plan) -> Described:
    """Budgets in numbers and as one row per layer."""
    flat = plan.n_keep.flatten().double()
    quantiles = [int(torch.quantile(flat, q, interpolation="nearest")) for q in (0.0, 0.1, 0.5, 0.9, 1.0)]
    n_keep = dict(zip(("min", "p10", "median", "p90", "max"), quantiles, strict=True))
    data = {
        "model": plan.model.to_json(),
        "weights": weights_of(plan.model.fingerprint),
        "policy": plan.policy,
        "tail": plan.tail,
        "budget": plan.budget,
        "mean_keep": plan.mean_keep,
        "reference_length": plan.reference_length,
        "selectors": plan.selector_counts(),
        "share_kv": plan.share_kv,
        "growth": None if plan.growth is None else plan.growth.tolist(),
        "verified": plan.verified,
        "n_keep_quantiles": n_keep,
        "n_keep": plan.n_keep.tolist(),
        "predicted": plan.predicted,
        "kinds": plan.kinds,
        "calibration": plan.calibration,
        "longest_window": plan.longest_window,
    }
    width = max(4, len(str(int(flat.max()))) + 1)
    rows = [f"  {layer:>3} |" + "".join(f"{n:>{width}}" for n in row) for layer, row in enumerate(plan.n_keep.tolist())]
    model = plan.model
    lines = [
        f"Plan for {model.name} ({model.architecture}, {model.layers} layers, {model.heads} query heads)",
        f"  {weights_line(model.name, model.fingerprint)}",
        f"  policy {plan.policy}, tail {plan.tail}, mean N {plan.mean_keep:.2f} at {plan.reference_length} tokens",
        "  N: " + ", ".join(f"{name} {value}" for name, value in n_keep.items()),
        *_plan_notes(plan),
        "layer | N per query head",
        *rows,
    ]
    return data, "\n".join(lines)


def _plan_notes(plan: Plan) -> list[str]:
    """What a plan says beside its budgets, one line each."""
    counts = plan.selector_counts()
    lines = ["  found by " + ", ".join(f"{name} ({count} heads)" for name, count in counts.items())]
    if plan.share_kv:
        lines.append("  the heads of one KV group keep the same tokens")
    if plan.growth is not None:
        typical = float(plan.growth.median())
        error = plan.predicted.get("growth_left_out_error")
        spread = "" if error is None else f"; budgets at a length left out are off by {error:.0%}"
        lines.append(f"  beyond {plan.reference_length} tokens N grows as context^{typical:.2f} (median){spread}")
    longest = plan.longest_window
    if longest is not None and longest < plan.reference_length:
        lines.append(
            f"  not measured at {plan.reference_length} tokens: the profile's longest windows have {longest}; where "
            "few tokens must do, profile with --lengths up to that context"
        )
    if len(plan.kinds) > 1:
        worst = max(plan.kinds, key=plan.kinds.__getitem__)
        lines.append(
            f"  predicted excess on {len(plan.kinds)} kinds of text: mean {fmean(plan.kinds.values()):.4f}, most "
            f"{plan.kinds[worst]:.4f} ({worst}) nats per token"
        )
    if "bytes" in plan.predicted:
        lines.append(f"  a decode step reads {plan.predicted['bytes'] / 1e6:.2f} MB of a 16-bit cache, modelled")
    if plan.verified:
        facts = plan.verified
        lines.append(
            f"  loss increase {facts['increase']:+.2%}, limit {facts['limit']:+.2%}, "
            f"tolerance {facts['tolerance']:.2%}, on {facts['windows']} windows never used before"
        )
        if facts["failed"]:
            lines.append(f"  the budget grew: {facts['failed']} smaller ones failed their verification")
    return lines


def describe_profile(profile: Profile, measured_bands: Bands | None = None) -> Described:
    """Means over heads per budget: mass, F against random, relative output error and (g.e)^2 of each tail; and what
    there is to say of each head (`heads.head_facts`), with envelopes where they were made."""
    table: list[dict[str, Any]] = []
    for column, budget in enumerate(profile.budgets):
        row: dict[str, Any] = {"n_keep": budget, "trivial": budget == 1}
        row["mass"] = float(profile.kept_mass()[..., column].mean())
        for name in METRICS:
            for prefix, ranking in (("", "attention"), ("random_", "random")):
                row[prefix + name] = finite_or_none(float(profile.geometry(name, ranking)[..., column].nanmean()))
        for tail in TAILS:
            row[f"output_error_{tail}"] = float(profile.relative_output_error(tail)[..., column].mean())
            row[f"fisher_{tail}"] = float(profile.fisher(tail)[..., column].sum())
        table.append(row)
    model = profile.model
    labels = profile.regimes().label.flatten().tolist()
    regimes = {name: labels.count(index) for index, name in enumerate(REGIMES)}
    counts = assumptions(profile)[0]
    data: dict[str, Any] = {
        "model": model.to_json(),
        "weights": weights_of(model.fingerprint),
        "length": profile.length,
        "lengths": list(profile.distinct_lengths),
        "windows": profile.windows,
        "selectors": list(profile.selectors),
        "queries": profile.queries,
        "regimes": regimes,
        "assumptions": counts,
        "nll": profile.nll,
        "budgets": table,
        "heads": head_facts(profile, measured_bands),
        "calibration": profile.calibration,
    }
    lines = [
        f"Profile of {model.name} ({model.architecture}, {model.layers} layers, {model.heads} query heads)",
        f"  {weights_line(model.name, model.fingerprint)}",
        f"  {profile.own().at(profile.length).windows} windows of {profile.length} tokens, {profile.queries} queries "
        f"each, dense NLL {profile.nll:.4f}",
        *_built_in(profile),
        "  regimes: " + ", ".join(f"{name} {count}" for name, count in regimes.items()),
        "  assumptions: " + _met(counts),
        "     N    mass       F  F rand.   output error (drop, renorm., centroid, blend50)   summed (g.e)^2, blend50",
    ]
    for row in table:
        errors = "".join(f"{row[f'output_error_{tail}']:>12.4f}" for tail in SHOWN)
        mark = "*" if row["trivial"] else " "
        lines.append(
            f"{row['n_keep']:>6}{mark}{row['mass']:>7.4f} {_number(row['f1'])} {_number(row['random_f1'])}  {errors}"
            f"{row['fisher_blend50']:>26.4g}"
        )
    lines.append("  * F is 1 by definition at N = 1, for any rule")
    if measured_bands is not None:
        coverage = finite_or_none(float(measured_bands.coverage().nanmean()))
        data["envelopes"] = {"level": measured_bands.level, "coverage": coverage}
        share = "no measured query" if coverage is None else f"{coverage:.1%} of the measured last queries"
        lines.append(f"  envelopes at the level {measured_bands.level:.0%} hold {share}")
    return data, "\n".join(lines)


def _built_in(profile: Profile) -> list[str]:
    """A line on the built-in kinds of text, where there are any."""
    names = [kind.removeprefix(BUILT_IN) for kind in dict.fromkeys(profile.kinds) if kind.startswith(BUILT_IN)]
    return [f"  and {len(names)} built-in kinds of text: {', '.join(names)}"] if names else []


def describe_score(result: dict[str, Any]) -> str:
    """Losses as text."""
    dense = result["dense"]
    lines = [f"{result['windows']} windows of {result['length']} tokens of {result['text']}"]
    lines += [f"note: {note}" for note in result["notes"]]
    lines.append(f"dense   NLL {dense['nll']:.4f}  perplexity {dense['perplexity']:.3f}")
    if "sparse" in result:
        sparse = result["sparse"]
        lines.append(f"sparse  NLL {sparse['nll']:.4f}  perplexity {sparse['perplexity']:.3f}")
        interval = sparse["excess_nll_interval"]
        spread = "" if interval is None else f"  95 % interval [{interval[0]:+.4f}, {interval[1]:+.4f}]"
        lines.append(f"excess  NLL {sparse['excess_nll']:+.4f}{spread}")
        lines.append(f"density {sparse['density']:.4f} ({sparse['mean_kept']:.1f} tokens kept per query and head)")
    return "\n".join(lines)


def describe_bench(result: dict[str, Any]) -> str:
    """Times as text."""
    lines = [
        f"context {result['context']}, {result['new_tokens']} tokens, {result['dtype']}, {result['device']}",
        f"baseline: {result['baseline']}",
    ]
    for name in ("dense", "dense_sparse_cache", "dense_own_products", "sparse"):
        if name not in result:
            continue
        part = result[name]
        prefill = f"prefill {part['prefill_seconds']:.2f} s, " if "prefill_seconds" in part else ""
        lines.append(
            f"{name.replace('_', ' '):<20} {prefill}decode {part['ms_per_token']:.1f} ms/token "
            f"({part['tokens_per_second']:.1f} tokens/s, {part['gb_per_second']:.1f} GB/s)"
        )
    ours = result["dense_sparse_cache"]
    lines.append(
        f"dense from a SparseCache is {result['cache_ratio']:.2f} times as fast as from the dynamic cache at decode, "
        f"{result['products_ratio']:.2f} times with our products of weights; "
        f"{ours['same_tokens']} of {ours['tokens']} tokens are the same"
    )
    if "sparse" in result:
        density = result["sparse"]["density"]
        lines.append(f"sparse is {result['ratio']:.2f} times as fast as dense at decode; density {density:.4f}")
    return "\n".join([*lines, f"note: {result['note']}"])


def _met(counts: dict[str, Any]) -> str:
    """How many heads meet each assumption, or why nobody knows."""
    if "reason" in counts:
        return str(counts["reason"])
    shares = ", ".join(f"{name} {counts[name]}" for name in ("A1", "A2", "A3"))
    return f"{shares}, all three {counts['all']} of {counts['heads']} heads"


def _number(value: float | None) -> str:
    return "      -" if value is None else f"{value:7.4f}"

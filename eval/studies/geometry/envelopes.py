"""Assumption fits of a model, how often the envelopes hold on its heads, and sink similarity against recall.

    python -m eval.studies.geometry.envelopes smollm2-135m --text a.txt --other b.txt --out results/geometry/MODEL

Fitted on --text, held against --other. A level promises its coverage under the law of
geosparse/geometry/README.md only.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from geosparse.geometry.envelopes import (
    LEVEL,
    METRICS,
    Envelope,
    inversions,
    level_envelope,
    mean_envelope,
    simulated_envelope,
)
from geosparse.geometry.fits import Fits, fit, holds, met
from geosparse.geometry.moments import Moments, total, window_moments
from geosparse.geometry.separation import selection_order, separation
from geosparse.geometry.sinks import find_sinks, own_position
from geosparse.geometry.value_law import Law, sample_rows, simulate
from geosparse.utils.console import whole

from . import simulation, sink_similarity
from .shared_command import Text, each_window, main, parser, rounded, windows_of

BUDGETS = (4, 16, 64)
COVERAGE_QUERIES = 4
ENVELOPE_KINDS = ("mean", "level", "simulated", "simulated_window", "simulated_a3")
"""`mean`: the window's mean over queries against bounds on expectations (no level). `level`, `simulated`: single
queries, given their attention rows (A1, A2). `simulated_window`: the mean over the window's queries, likewise.
`simulated_a3`: a single query with nothing measured but the fits (A1 to A3)."""


def fit_text(
    model: Any, windows: torch.Tensor, options: argparse.Namespace, what: str
) -> tuple[Fits, list[list[sink_similarity.Observed]]]:
    """Fits of every head `[layers, Hq]`, and what relates the sink to recall, per window and layer."""
    moments: list[list[Moments]] = [[] for _ in windows]
    observed: list[list[sink_similarity.Observed]] = [[] for _ in windows]

    def visitor(index: int, generator: torch.Generator) -> Any:
        def visit(layer: int, alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> None:
            moments[index].append(window_moments(alpha, value, seen))
            observed[index].append(sink_similarity.observe(alpha, value, seen))

        return visit

    each_window(model, windows, options.queries, options.seed, visitor, what)
    return fit(total(map(Moments.stack, moments))), observed


class Coverage:
    """Counts per kind of envelope, `[layers, Hq, G, 3]`: outcomes within, outcomes, summed width."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.counts = {
            kind: torch.zeros(3, *shape, len(BUDGETS), 3, dtype=torch.float64, device="cpu") for kind in ENVELOPE_KINDS
        }

    def add(self, kind: str, head_index: tuple[int, int], envelope: Envelope, outcome: torch.Tensor) -> None:
        """Count `outcome` `[..., G, 3]` against an envelope of the same shape; NaN outcomes do not count."""
        known = torch.isfinite(outcome)
        inside = (outcome >= envelope.lower - 1e-6) & (outcome <= envelope.upper + 1e-6) & known
        width = (envelope.upper - envelope.lower).masked_fill(~known, 0.0)
        sums = torch.stack([part.double().reshape(-1, len(BUDGETS), 3).sum(0) for part in (inside, known, width)])
        self.counts[kind][:, head_index[0], head_index[1]] += sums

    def table(self, chosen: torch.Tensor) -> dict[str, Any]:
        """Coverage and mean width per kind over the heads `chosen` `[layers, Hq]`, per metric and per N."""
        return {kind: self._row(counts[:, chosen].sum(1)) for kind, counts in self.counts.items()}

    @staticmethod
    def _row(counts: torch.Tensor) -> dict[str, Any]:
        inside, known, width = counts
        by_metric = (inside.sum(0) / known.sum(0), width.sum(0) / known.sum(0))
        return {
            "coverage": dict(zip(METRICS, by_metric[0], strict=True)),
            "mean_width": dict(zip(METRICS, by_metric[1], strict=True)),
            "coverage_of_f1_by_n": dict(zip(map(str, BUDGETS), inside[:, 2] / known[:, 2], strict=True)),
            "outcomes": int(known[:, 2].sum()),
        }


def measure_coverage(model: Any, windows: torch.Tensor, fits: Fits, options: argparse.Namespace) -> Coverage:
    """Every kind of envelope on `COVERAGE_QUERIES` queries per window and head."""
    shape = (fits.norm.level.shape[0], fits.norm.level.shape[1])
    coverage = Coverage(shape)

    def visitor(index: int, generator: torch.Generator) -> Any:
        def visit(layer: int, alpha: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> None:
            group = alpha.shape[0] // value.shape[0]
            sinks = find_sinks(alpha, value, seen)
            rows = torch.linspace(
                len(seen) // 2, len(seen) - 1, COVERAGE_QUERIES, dtype=torch.float32, device="cpu"
            ).long()
            for head in range(alpha.shape[0]):
                head_index = (layer, head)
                part = (alpha[head, rows], value[head // group], seen[rows], sinks[head // group])
                _cover(coverage, head_index, Law.of(fits, head_index), fits, *part, generator)

        return visit

    each_window(model, windows, options.queries, options.seed, visitor, "coverage")
    return coverage


def _cover(
    coverage: Coverage,
    head_index: tuple[int, int],
    law: Law,
    fits: Fits,
    alpha: torch.Tensor,
    value: torch.Tensor,
    seen: torch.Tensor,
    sinks: torch.Tensor,
    generator: torch.Generator,
) -> None:
    """Count one head in one window: `alpha` and `seen` `[R, L]`, `value` `[L, D]`, `sinks` `[L]`."""
    metrics = separation(alpha, value, selection_order(alpha, seen), seen, BUDGETS)
    outcome = torch.stack([metrics.precision, metrics.recall, metrics.f1], -1)
    simulated = simulate(law, alpha, seen, sinks, BUDGETS, generator)
    coverage.add("simulated", head_index, simulated_envelope(simulated), outcome)
    coverage.add("simulated_window", head_index, simulated_envelope(simulated.mean(1)), outcome.mean(0))
    bounds: dict[str, list[Envelope]] = {"mean": [], "level": []}
    for row, visible in zip(alpha, seen, strict=True):
        pairs = [inversions(law, row[visible], sinks[visible], n) for n in BUDGETS]
        for kind, bound in (("mean", mean_envelope), ("level", level_envelope)):
            envelopes = [bound(pair) for pair in pairs]
            bounds[kind].append(Envelope(*(torch.stack(side) for side in zip(*envelopes, strict=True))))
    for kind, parts in bounds.items():
        envelope = Envelope(*(torch.stack(side) for side in zip(*parts, strict=True)))
        if kind == "mean":
            coverage.add(kind, head_index, Envelope(envelope.lower.mean(0), envelope.upper.mean(0)), outcome.mean(0))
        else:
            coverage.add(kind, head_index, envelope, outcome)
    end = int(own_position(seen[-1:])) + 1
    visible = seen[-1:, :end]
    drawn = sample_rows(fits.profile, head_index, sinks[:end], len(simulated), generator) * visible
    drawn = (drawn / drawn.sum(-1, keepdim=True))[:, None]
    alone = simulate(law, drawn, visible, sinks[:end], BUDGETS, generator, len(simulated))[:, 0]
    coverage.add("simulated_a3", head_index, simulated_envelope(alone), outcome[-1])


def study(model: Any, tokenizer: Any, texts: dict[str, Text], options: argparse.Namespace) -> dict[str, Any]:
    """The whole result, as JSON."""
    windows = {role: windows_of(tokenizer, text, options.length, options.windows) for role, text in texts.items()}
    fits, observed = fit_text(model, windows["text"], options, "fit text")
    others, _ = fit_text(model, windows["other"], options, "fit other")
    # The middle of the text, not its title page.
    middle = len(windows["other"]) // 2
    checked = windows["other"][middle : middle + options.coverage]
    coverage = measure_coverage(model, checked, fits, options)
    verdict = holds(fits)
    every = torch.stack(list(verdict.values())).all(0)
    anywhere = torch.ones_like(every)
    result: dict[str, Any] = {
        "assumptions": {"text": met(fits), "other": met(others)},
        "fit_quantiles": {name: _quantiles(part) for name, part in _parts(fits).items()},
        "coverage": {
            "level": LEVEL,
            "windows": len(checked),
            "queries_per_window": COVERAGE_QUERIES,
            "budgets": BUDGETS,
            "all heads": coverage.table(anywhere),
            "heads that meet A1 to A3": coverage.table(every) if bool(every.any()) else None,
        },
        "sink_similarity_and_recall": sink_similarity.correlate(observed, fits.similarity.sink, options.seed),
        "synthetic": simulation.synthetic_coverage(options.seed),
        "heads": {name: _rounded_fields(part) for name, part in _parts(fits).items()},
    }
    return rounded(result)


def _parts(fits: Fits) -> dict[str, Any]:
    return {"A1": fits.norm, "A2": fits.similarity, "A3": fits.profile}


def _quantiles(part: Any) -> dict[str, Any]:
    """10 %, 50 % and 90 % over heads of every field."""
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64, device="cpu")
    flat = {name: field.double().flatten(0, 1) for name, field in part._asdict().items()}
    return {name: torch.nanquantile(field, levels, dim=0).movedim(0, -1) for name, field in flat.items()}


def _rounded_fields(part: Any) -> dict[str, Any]:
    return rounded(part._asdict(), 3)


def describe(result: dict[str, Any]) -> str:
    """The short table."""
    lines = [f"Assumptions of {result['model']['name']} (heads that meet each)"]
    for role, counts in result["assumptions"].items():
        shares = ", ".join(f"{name} {count}" for name, count in counts.items() if name != "heads")
        lines.append(f"  {result['texts'][role]['name']}: {shares} of {counts['heads']}")
    lines.append("envelope: coverage of P, R, F and mean width of F, level 95 % (mean: bounds of the expectation)")
    for kind, row in result["coverage"]["all heads"].items():
        lines.append(_coverage_line(kind, row))
    lines.append("the same where the assumptions hold exactly, or not")
    for case, kinds in result["synthetic"]["cases"].items():
        for kind, row in kinds.items():
            lines.append(_coverage_line(f"{case}: {kind}", row))
    lines.append("Spearman of sink similarity and recall, over heads")
    for row in result["sink_similarity_and_recall"]["over_heads"]:
        low, high = row["interval"] or (float("nan"), float("nan"))
        lines.append(f"  N = {row['n_keep']:<4} {row['rho'] or float('nan'):+.3f} [{low:+.3f}, {high:+.3f}]")
    return "\n".join(lines)


def _coverage_line(name: str, row: dict[str, Any]) -> str:
    coverage = "  ".join(f"{row['coverage'][metric]:.3f}" for metric in METRICS)
    return f"  {name:<28} {coverage}   {row['mean_width']['f1']:.3f}"


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    options = parser("envelopes", "assumption fits, coverage of the envelopes, sink similarity against recall")
    options.add_argument(
        "--coverage", type=whole(1), default=2, help="windows of --other on which envelopes are checked (2)"
    )
    return options.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main("envelopes", options_of(), study, describe))

"""Results in Markdown: a score table per recipe, and the page that lists all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..harness.methods import DENSE
from ..harness.result import Measurement, Result
from .points import Loaded
from .text import facts_of, percent

HEAD = """# Results

Made by `python -m eval.report` from the folders below; do not edit. Each was written by `python -m eval.run NAME`:
`recipe.yaml` is the whole recipe, `plans/` what each variant keeps, `result.json` the scores with their provenance,
`samples.jsonl` the score of every sample, `timing.json` seconds and milliseconds, `pareto.png` the plots. The same
command makes `report.html` beside each, and here for all: pages that say the numbers of each mark. `LOG.md` has the
experiments.

A cell is the score and, in brackets, the difference to dense on the same samples. `*` marks a difference that is more
than chance: its 95 % interval leaves out zero, for accuracies an exact McNemar test is below 5 %. Tasks where
the dense model does no better than guessing are set in italics and left out of the means.
"""


TIMES = {
    "ms_per_token": "ms per token",
    "times_dense": "times as fast as dense, in turns",
    "ms_per_token_torch_products": "ms, weights multiplied by torch",
    "times_dense_torch_products": "times as fast, weights multiplied by torch",
    "cache_bytes": "cache, MiB",
}


def score_table(loaded: Loaded) -> str:
    """Scores of every variant on every task, where it was timed what a token took and the cache held, and the mean and
    the worst recovery; the longer of variants and tasks goes down."""
    result = loaded.result
    variants = [info.id for info in result.variants if any(row.variant == info.id for row in result.measurements)]
    floors = {text.split(":")[0] for text in result.warnings if "no better than guessing" in text}
    by_variant = {each.variant: each for each in result.summary}
    grid = [["", *variants]]
    for info in result.tasks:
        metric = result.main_metric(info.id)
        rows = result.of(info.id, metric)
        name = f"*{info.id}*" if info.id in floors else info.id
        grid.append([f"{name}: {metric}, n = {info.samples_effective}", *(_cell(rows.get(v)) for v in variants)])
        grid += _times(loaded, info.id, variants)
    if len(result.tasks) > 1:
        for label, field in (("mean recovery", "mean_recovery"), ("worst task's recovery", "worst_recovery")):
            cells = [f"{getattr(by_variant[v], field):.3f}" if v in by_variant else "" for v in variants]
            grid.append([label, *cells])
    if len(variants) > len(result.tasks):
        grid = [list(row) for row in zip(*grid, strict=True)]
    lines = ["| " + " | ".join(row) + " |" for row in grid]
    return "\n".join([lines[0], "|---" * len(grid[0]) + "|", *lines[1:]])


def _cell(row: Measurement | None) -> str:
    if row is None:
        return ""
    if row.difference is None:
        return f"{row.value:.4g}" + (f" ± {row.stderr:.2g}" if row.stderr is not None else "")
    sure = (
        row.mcnemar < 0.05 if row.mcnemar is not None else bool(row.interval and row.interval[0] * row.interval[1] > 0)
    )
    return f"{row.value:.4g} ({row.difference:+.2g}{'*' if sure else ''})"


def results_page(results_found: Sequence[Loaded], results: Path) -> str:
    """`results/README.md`."""
    parts = [HEAD]
    for loaded in results_found:
        result = loaded.result
        name, facts = result.run.recipe, facts_of(result)
        folder = loaded.folder.relative_to(results).as_posix()
        parts.append(f"## {name}\n\n{result.run.title}\n\n`python -m eval.run {name}`: {', '.join(facts)}.\n")
        parts.append(score_table(loaded) + "\n")
        parts.append(_densities(result))
        if (loaded.folder / "pareto.png").exists():
            parts.append(f"![Quality against density: {name}]({folder}/pareto.png)\n")
    return "\n".join(parts)


def _densities(result: Result) -> str:
    lines = []
    for info in result.variants:
        rows = (row for row in result.measurements if row.variant == info.id)
        densities = {row.task: row.density for row in rows if row.density is not None}
        if info.id != DENSE and densities:
            low, high = min(densities.values()), max(densities.values())
            lines.append(f"- `{info.id}` kept {percent(low)} to {percent(high)} of the tokens that queries saw")
    nothing = sorted({text.split(",")[0] for text in result.warnings if "shows nothing" in text})
    if nothing:
        lines.append(f"- contexts hardly longer than some budgets, which shows nothing there: {', '.join(nothing)}")
    return "\n".join(lines) + "\n"


def _times(loaded: Loaded, task: str, variants: Sequence[str]) -> list[list[str]]:
    """Rows of the table, for a task that was timed: what its tokens took, and what the cache held."""
    cells_of = {what: loaded.timed(task, what) for what in TIMES}
    for what in ("ms_per_token", "times_dense"):
        if torch_products := cells_of[f"{what}_torch_products"]:
            # Dense attention and the peers leave the weights to torch anyway.
            cells_of[f"{what}_torch_products"] = cells_of[what] | torch_products
    cells_of["cache_bytes"] = {variant: size / 2**20 for variant, size in cells_of["cache_bytes"].items()}
    return [
        [TIMES[what], *(format(cells[v], ".2f" if "times" in what else ".0f") if v in cells else "" for v in variants)]
        for what, cells in cells_of.items()
        if cells
    ]

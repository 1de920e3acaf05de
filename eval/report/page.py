"""Results as one HTML page that needs nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geosparse.reports import pages
from geosparse.reports.palette import SERIES

from ..harness.result import Result
from .chart import Chart, panel_chart, strips_chart
from .figure import MORE_HUES, colours
from .points import Loaded, density_panels, recovery_panel, series_of, speed_panels
from .text import cells, facts_of, percent

PACKAGE = "eval.report"
Recipe = dict[str, Any]
COLUMNS = ("variant", "score", "± stderr", "samples", "density", "difference", "95 % interval", "changed")
# By the places that `figure.colours` gives.
HUES = (*(f"var(--s{number})" for number in range(len(SERIES))), *MORE_HUES, "var(--muted)")


def write_page(path: Path, folders: Sequence[Path]) -> None:
    """Write the page of these results; same results, same bytes."""
    pages.write_page(path, render([recipe_part(Loaded.of(folder)) for folder in folders]))


def write_site(folder: Path, recipes: Sequence[Recipe]) -> list[Path]:
    """Write a page per recipe, `NAME.html`, and `index.html` that leads to them; returns what was written."""
    written = [pages.write_page(_made(folder / f"{recipe['name']}.html"), render([recipe])) for recipe in recipes]
    index = pages.render("index.html.j2", title="geosparse: results", package=PACKAGE, recipes=recipes)
    return [*written, pages.write_page(_made(folder / "index.html"), index)]


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def render(recipes: Sequence[Recipe]) -> str:
    """The page as text."""
    title = "geosparse: results" if len(recipes) != 1 else f"geosparse: {recipes[0]['name']}"
    return pages.render("results.html.j2", title=title, package=PACKAGE, hues=HUES, columns=COLUMNS, recipes=recipes)


def recipe_part(loaded: Loaded) -> Recipe:
    """What a page shows of one recipe: facts, plots, tables."""
    result = loaded.result
    run = result.run
    return {
        "name": run.recipe,
        "title": run.title,
        "facts": facts_of(result),
        "limit": run.limit,
        "charts": _charts(loaded),
        "tasks": _tasks(result),
        "summary": [
            f"{each.variant}: {percent(each.mean_recovery)} of dense in the mean of {each.tasks} tasks, "
            f"{percent(each.worst_recovery)} in the worst, {each.worst_task}"
            for each in result.summary
        ],
        "warnings": result.warnings,
    }


def _charts(loaded: Loaded) -> list[tuple[str, Chart]]:
    """Headings and plots."""
    colour_of = colours([series_of(loaded.result, info.id) for info in loaded.result.variants])
    rows = recovery_panel(loaded)
    charts = [("What is left of the dense score, per task", strips_chart(rows, colour_of))] if rows else []
    for what, panels in (("density", density_panels(loaded)), ("ms per token", speed_panels(loaded))):
        charts += [(f"Quality against {what}: {panel.title}", panel_chart(panel, colour_of)) for panel in panels]
    return charts


def _tasks(result: Result) -> list[dict[str, Any]]:
    """The table: the main metric of every task, a row per variant."""
    tasks = []
    for info in result.tasks:
        metric = result.main_metric(info.id)
        about = f"{info.id}, {metric}; {info.samples_effective} of {info.samples_original} samples"
        tasks.append({"about": about, "rows": [cells(row)[2:] for row in result.of(info.id, metric).values()]})
    return tasks

"""Results as one HTML page that needs nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from geosparse.artifact import write_atomic
from geosparse.reports.frame import html_page

from ..harness.result import Result
from .chart import CSS, colours, legend, scatter, strips
from .points import Loaded, Panel, density_panels, recovery_panel, series_of, speed_panels
from .text import cells, percent

COLUMNS = ("variant", "score", "± stderr", "samples", "density", "difference", "95 % interval", "changed")
LEAD = (
    "Quality against how much of the context is kept, and against the time of a decoded token. Point at a mark, or "
    "move to it with the Tab key, for its numbers. Differences are paired: the same samples under dense attention and "
    "under the variant; bars and intervals are 95 % (bootstrap over samples; below ten samples Student's t)."
)


def write_page(path: Path, folders: Sequence[Path]) -> None:
    """Write the page of these results; same results, same bytes."""
    text = render([Loaded.of(folder) for folder in folders])
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def render(found: Sequence[Loaded]) -> str:
    """The page as text."""
    title = "geosparse: results" if len(found) != 1 else f"geosparse: {found[0].result.run.recipe}"
    header = f'<style>{CSS}</style>\n<p class="lead">{escape(LEAD)}</p>'
    return html_page(title, header, [section(each) for each in found], [])


def section(loaded: Loaded) -> str:
    """One recipe: facts, plots, tables."""
    result = loaded.result
    run, words = result.run, [f"<section>\n<h2>{escape(result.run.recipe)}</h2>\n<p>{escape(result.run.title)}</p>"]
    facts = [run.model["name"], run.dtype, result.provenance["device"], result.provenance["processor"]]
    facts += [f"{name} {version}" for name, version in sorted(result.provenance["versions"].items())]
    words.append(f'<p class="facts">{escape(" · ".join(facts))}</p>')
    if run.limit is not None:
        words.append(f'<p class="note">At most {run.limit} samples per task were scored.</p>')
    hues = colours([series_of(result, info.id) for info in result.variants])
    rows = recovery_panel(loaded)
    if rows:
        words.append("<h3>What is left of the dense score, per task</h3>")
        words.append(legend(hues, {p.series for _, points in rows for p in points}) + strips(rows, hues))
    words += [_plot(panel, hues, "Quality against density") for panel in density_panels(loaded)]
    words += [_plot(panel, hues, "Quality against ms per token") for panel in speed_panels(loaded)]
    words.append(_table(result))
    words += [f'<p class="note">{escape(text)}</p>' for text in result.warnings]
    return "\n".join([*words, "</section>"])


def _plot(panel: Panel, hues: dict[str, int], what: str) -> str:
    shown = {p.series for p in panel.points}
    return f"<h3>{what}: {escape(panel.title)}</h3>\n{legend(hues, shown)}{scatter(panel, hues)}"


def _table(result: Result) -> str:
    head = "".join(f"<th{_name(place)}>{escape(name)}</th>" for place, name in enumerate(COLUMNS))
    body = []
    for info in result.tasks:
        metric = result.main_metric(info.id)
        about = f"{info.id}, {metric}; {info.samples_effective} of {info.samples_original} samples"
        body.append(f'<tr class="group"><td class="name" colspan="{len(COLUMNS)}"><b>{escape(about)}</b></td></tr>')
        for row in result.of(info.id, metric).values():
            words = cells(row)[2:]
            body.append(
                "<tr>" + "".join(f"<td{_name(i)}>{escape(word)}</td>" for i, word in enumerate(words)) + "</tr>"
            )
    lines = [
        f"<li>{escape(each.variant)}: {percent(each.mean_recovery)} of dense in the mean of {each.tasks} tasks, "
        f"{percent(each.worst_recovery)} in the worst, {escape(each.worst_task)}</li>"
        for each in result.summary
    ]
    table = f'<table class="rows"><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table>'
    return f'<h3>All numbers</h3>\n<div class="wide">{table}</div>\n<ul>{"".join(lines)}</ul>'


def _name(place: int) -> str:
    return ' class="name"' if place == 0 else ""

"""The pictures of a report: quality against budget (matplotlib) and the layer x head map (plain SVG)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..artifact import write_atomic
from ..errors import GeosparseError

# (light, dark) of each series; a policy outside the known ones takes a colour that is still free.
SERIES = (("#2a78d6", "#5b9df0"), ("#d4571f", "#ee8050"), ("#6a4fc4", "#a99bf2"), ("#0c8a5f", "#35bd8b"))
RAMP = (("#e6eef9", "#5598e7", "#0b2f60"), ("#1b2633", "#2a6cc0", "#c9dffa"))
_KNOWN = {"fisher": 0, "uniform": 1, "permuted": 2}
_MARKERS = ("o", "s", "D", "P")
_DASHES = {"centroid": "-", "renormalize": "--"}
_SHADES = (
    {"ink": "#1f2328", "muted": "#59636e", "grid": "#e2e6ea", "paper": "#ffffff", "panel": "#f5f7f9"},
    {"ink": "#e4e8ed", "muted": "#98a2ad", "grid": "#2b333c", "paper": "#0f1419", "panel": "#171e26"},
)
_PAPER = _SHADES[0] | {f"s{i}": light for i, (light, _) in enumerate(SERIES)}
# Colours that occur nowhere else in the SVG: each is replaced by the CSS variable of the same name.
_SENTINEL = {name: f"#01{i:02x}fe" for i, name in enumerate(_PAPER)}

_CSS = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 -apple-system,"Segoe UI",Inter,Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:920px;margin:0 auto;padding:48px 24px 72px}
h1{font-size:1.9rem;line-height:1.2;letter-spacing:-.015em;margin:0 0 6px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 10px;letter-spacing:-.005em}
section{margin-top:44px;border-top:1px solid var(--grid);padding-top:22px}
p{margin:0 0 10px;max-width:72ch;overflow-wrap:anywhere}
.facts,.note{color:var(--muted);font-size:.9rem;max-width:96ch}
.wide+.note,figure+.note{margin-top:10px}
.lead{margin-top:20px;font-size:1.05rem}
figure{margin:0;overflow-x:auto}
.plot{display:block;width:100%;min-width:440px;max-width:780px;height:auto}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
.rows{width:100%}
.rows th{color:var(--muted);font-weight:500;border-bottom:1px solid var(--muted)}
.rows th,.rows td{padding:5px 10px;text-align:right;white-space:nowrap}
.rows th:last-child,.rows td:last-child{padding-right:0}
.rows th:first-child,.rows td:first-child{padding-left:0}
.rows th.name,.rows td.name{text-align:left}
.group td{border-top:1px solid var(--grid)}
.best td:nth-child(5){font-weight:700}
table.facts{max-width:none}
table.facts th{font-weight:400;text-align:left;padding:3px 22px 3px 0;white-space:nowrap;vertical-align:top}
table.facts td{color:var(--ink);padding:3px 0;overflow-wrap:anywhere}
dl{margin:0}
dd{margin:0}
.terms{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;font-size:.9rem}
.terms dt{font-weight:600}
.terms dd{color:var(--muted)}
.tiles{display:flex;flex-wrap:wrap;gap:8px 36px;margin:14px 0 22px}
.tiles dt{color:var(--muted);font-size:.82rem}
.tiles dd{font-size:1.25rem;font-weight:600;font-variant-numeric:tabular-nums}
.maps{display:flex;flex-wrap:wrap;gap:28px 48px;align-items:flex-start}
.maps>div{min-width:0;max-width:100%}
.map{display:block}
.map text{font-size:10px;fill:var(--muted);text-anchor:middle;font-variant-numeric:tabular-nums}
.small g text{font-size:9px}
.map .axis{font-size:11px}
.map .end{text-anchor:end}
.map .start{text-anchor:start}
.map .edge{stroke:var(--grid)}
.map g:hover rect{stroke:var(--ink);stroke-width:1.5}
pre{background:var(--panel);border:1px solid var(--grid);border-radius:6px;padding:12px 14px;overflow-x:auto}
code{font:.88rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
@media (max-width:600px){main{padding:28px 16px 48px}h1{font-size:1.5rem}}
"""
Row = dict[str, Any]


def require_plots() -> None:
    """Fail early when the plotting extra is missing.

    Raises:
        GeosparseError: matplotlib cannot be imported.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise GeosparseError("Reports need matplotlib, which is not installed: pip install geosparse[plots]") from error


def number(value: object) -> float | None:
    """`value` as a finite float, or None for everything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def rows_of(result: dict[str, Any]) -> list[Row]:
    """The rows of a result, measured or not."""
    return [row for row in result.get("rows") or [] if isinstance(row, dict)]


def interval(row: Row) -> tuple[float, float] | None:
    """The 95 % interval of a row's excess NLL, when it was measured."""
    bounds = row.get("excess_nll_interval")
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        return None
    low, high = number(bounds[0]), number(bounds[1])
    return None if low is None or high is None else (low, high)


def save_frontier_png(path: Path | str, result: dict[str, Any]) -> Path:
    """Write the plot of excess NLL against mean tokens kept as a PNG on white, atomically.

    Args:
        path: The file to write.
        result: A result of `geosparse.result/1`.

    Raises:
        GeosparseError: matplotlib is missing or the file cannot be written.
    """
    figure = _frontier(rows_of(result), _PAPER)
    save = {"format": "png", "dpi": 200, "metadata": {"Software": None}}
    return write_atomic(path, lambda temporary: _save(figure, temporary, save))


def frontier_svg(result: dict[str, Any]) -> str:
    """The same plot as an `<svg>` element whose colours are the CSS variables of the page."""
    buffer = io.BytesIO()
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure = _frontier(rows_of(result), _SENTINEL)
    _save(figure, buffer, {"format": "svg", "transparent": True, "metadata": blank})
    svg = buffer.getvalue().decode("utf-8")
    for name, colour in _SENTINEL.items():
        svg = svg.replace(colour, f"var(--{name})")
    # The page's own font: matplotlib names the one that it measured with.
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg[svg.index("<svg") :])
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    label = "Excess NLL over dense attention against the mean number of tokens kept per head"
    return f'<svg class="plot" role="img" aria-label="{label}" {box.group() if box else ""}>{body.rstrip()}'


def _style() -> list[Any]:
    own = {
        "svg.hashsalt": "geosparse",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "xtick.minor.size": 0,
        "ytick.major.size": 0,
        "ytick.minor.size": 0,
    }
    return ["default", own]


def _save(figure: Any, target: Path | io.BytesIO, options: dict[str, Any]) -> None:
    import matplotlib.style

    with matplotlib.style.context(_style()):
        figure.savefig(target, **options)


def _points(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows that can be drawn, by (policy, tail), each sorted by budget."""
    series: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        keep = number(row.get("mean_keep"))
        if number(row.get("excess_nll")) is not None and keep is not None and keep > 0:
            series.setdefault((str(row.get("policy")), str(row.get("tail"))), []).append(row)
    return {key: sorted(found, key=lambda row: float(row["mean_keep"])) for key, found in series.items()}


def _slots(policies: Sequence[str]) -> dict[str, int]:
    free = [i for i in range(len(SERIES)) if i not in {_KNOWN.get(name) for name in policies}] or [0]
    others = [name for name in dict.fromkeys(policies) if name not in _KNOWN]
    return {**_KNOWN, **{name: free[i % len(free)] for i, name in enumerate(others)}}


def _frontier(rows: Sequence[Row], colours: dict[str, str]) -> Any:
    require_plots()
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(_style()):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor=colours["paper"])
        axes = figure.add_subplot()
        axes.set_facecolor("none")
        series = _points(rows)
        if not series:
            axes.set_axis_off()
            axes.text(0.5, 0.5, "no measured rows", ha="center", va="center", color=colours["muted"])
            return figure
        floor = _axes(axes, [row for found in series.values() for row in found], colours)
        slots = _slots([policy for policy, _ in series])
        for place, (key, found) in enumerate(series.items()):
            # Neighbouring series stand a hair apart, so that their error bars can be told from each other.
            shift = 2 ** (0.035 * (place - (len(series) - 1) / 2))
            _line(axes, key, found, slots[key[0]], shift, floor, colours)
        columns = min(3, len(series))
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, labelcolor=colours["ink"], handlelength=3)
    return figure


def _axes(axes: Any, rows: list[Row], colours: dict[str, str]) -> float:
    """Scales, ticks and labels; returns the height at which a point at or below zero is drawn."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    keeps = sorted({float(row["mean_keep"]) for row in rows})
    low, high = _limits(rows)
    floor = low * 1.6
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(keeps[0] / 1.25, keeps[-1] * 1.25)
    axes.set_ylim(low, high)
    axes.set_xticks(keeps, [f"{keep:g}" for keep in keeps])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if math.log10(high / low) < 3.5 else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["bottom"].set_color(colours["muted"])
    axes.tick_params(colors=colours["muted"], labelcolor=colours["muted"])
    axes.set_xlabel("mean tokens kept per head", color=colours["ink"])
    axes.set_ylabel("excess NLL over dense (nats per token)", color=colours["ink"])
    if any(row["excess_nll"] <= 0 for row in rows):
        axes.axhline(floor, color=colours["muted"], linewidth=0.8, linestyle=":")
        note = {"color": colours["muted"], "fontsize": 8.5, "va": "bottom"}
        axes.annotate("▼ at or below dense", (0.0, floor), (3, 2), ("axes fraction", "data"), "offset points", **note)
    return floor


def _limits(rows: list[Row]) -> tuple[float, float]:
    values = [float(row["excess_nll"]) for row in rows]
    bounds = [found for row in rows if (found := interval(row))]
    least = min((value for value in values if value > 0), default=1e-3)
    # An interval that comes near zero would take decades of an axis that nothing else needs.
    lows = [low for low, _ in bounds if low > least / 30]
    return min([least / 4, *(low / 1.3 for low in lows)]), 1.4 * max([least, *values, *(high for _, high in bounds)])


def _line(
    axes: Any,
    key: tuple[str, str],
    rows: list[Row],
    slot: int,
    shift: float,
    floor: float,
    colours: dict[str, str],
) -> None:
    colour, dash = colours[f"s{slot}"], _DASHES.get(key[1], ":")
    marker = {"markersize": 5.5, "markeredgecolor": colours["paper"], "markeredgewidth": 0.6}
    bar = {"color": colour, "capsize": 3.5, "capthick": 1.2, "elinewidth": 1.2, "zorder": 2}
    x = [float(row["mean_keep"]) * shift for row in rows]
    y = [max(float(row["excess_nll"]), floor) for row in rows]
    label = " · ".join(key)
    axes.plot(x, y, dash, color=colour, marker=_MARKERS[slot], linewidth=1.8, label=label, zorder=3, **marker)
    for at, height, row in zip(x, y, rows, strict=True):
        bounds = interval(row)
        if bounds is not None and bounds[1] > 0:
            # A bound that log scale cannot show runs out of the bottom of the axes.
            low, high = max(bounds[0], floor / 100), max(bounds[1], height)
            axes.errorbar(at, height, [[max(height - low, 0)], [high - height]], **bar)
        if row["excess_nll"] <= 0:
            axes.plot(at, floor, "v", color=colour, zorder=4, **{**marker, "markersize": 7.5})


def head_map_svg(n_keep: Sequence[Sequence[int]]) -> str:
    """The number of tokens that each head keeps: layers down, heads across, one colour step per doubling.

    Args:
        n_keep: Tokens kept, by layer and head.

    Returns:
        An `<svg>` element; the fill of step i is the class `k<i>` of `ramp_css`.
    """
    heads = max(map(len, n_keep), default=0)
    wide, high = max(16, min(44, 792 // max(heads, 1))), 20 if len(n_keep) <= 48 else 15
    digits = max((len(str(n)) for row in n_keep for n in row), default=1)
    left, above = 46, 38
    # Widths of the digits in a wide font; below 9 px nobody reads them.
    size = 10 if digits * 6.2 + 3 <= wide else 9 if digits * 5.6 + 1 <= wide else None
    width, height = left + heads * wide + 2, above + len(n_keep) * high + 2
    every = 1 if wide >= 20 else 2
    parts = [
        f'<svg class="map{" small" if size == 9 else ""}" role="img" aria-label="Tokens kept by layer and head" '
        f'width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<text class="axis" x="{left + heads * wide / 2:g}" y="13">head</text>',
        f'<text class="axis" transform="translate(11 {above + len(n_keep) * high / 2:g}) rotate(-90)">layer</text>',
    ]
    for head in range(0, heads, every):
        parts.append(f'<text x="{left + (head + 0.5) * wide:g}" y="{above - 7}">{head}</text>')
    for layer, row in enumerate(n_keep):
        y = above + layer * high
        parts.append(f'<text class="end" x="{left - 7}" y="{y + high / 2 + 3.6:g}">{layer}</text>')
        for head, n in enumerate(row):
            x, step = left + head * wide, step_of(n)
            where = f"layer {layer}, head {head}: N = {n}"
            cell = f'<rect class="k{step}" x="{x}" y="{y}" width="{wide - 1}" height="{high - 1}" rx="2"/>'
            shown = f'<text class="t{step}" x="{x + (wide - 1) / 2:g}" y="{y + high / 2 + 3.2:g}">{n}</text>'
            parts.append(f"<g><title>{where}</title>{cell}{shown if size else ''}</g>")
    return "\n".join([*parts, "</svg>"])


def head_key_svg(n_keep: Sequence[Sequence[int]]) -> str:
    """The colour key of the map, which is also its histogram: heads per doubling of N."""
    steps = [step_of(n) for row in n_keep for n in row]
    last, most = max(steps, default=0), max((steps.count(s) for s in set(steps)), default=1)
    height = 22 * (last + 1) + 22
    parts = [
        f'<svg class="map key" role="img" aria-label="Heads per range of N" width="260" height="{height}" '
        f'viewBox="0 0 260 {height}">',
        '<text class="axis end" x="66" y="12">N</text><text class="axis start" x="76" y="12">heads</text>',
    ]
    for step in range(last + 1):
        y, count = 20 + 22 * step, steps.count(step)
        name = ("1", "2")[step] if step < 2 else f"{2 ** (step - 1) + 1}–{2**step}"
        bar = 4 + 140 * count / most
        parts.append(
            f'<g><title>{name}: {count} heads</title><text class="end" x="66" y="{y + 13}">{name}</text>'
            f'<rect class="k{step} edge" x="76" y="{y}" width="{bar:.1f}" height="18" rx="2"/>'
            f'<text class="start" x="{82 + bar:.1f}" y="{y + 13}">{count}</text></g>'
        )
    return "\n".join([*parts, "</svg>"])


def step_of(n: int) -> int:
    """The colour step of N: 0 for N <= 1, then one per doubling (2, 3-4, 5-8, ...)."""
    return max(int(n) - 1, 0).bit_length()


def page_css(n_keep: Sequence[Sequence[int]]) -> str:
    """The style sheet of the page, light and dark; `k<i>` fills a cell of step i, `t<i>` is the legible text on it."""
    steps = max((step_of(n) for row in n_keep for n in row), default=0)
    light, dark = (_colours(shade, steps) for shade in (0, 1))
    return f"{light}\n@media (prefers-color-scheme: dark) {{\n{dark}\n}}\n{_CSS}"


def _colours(shade: int, steps: int) -> str:
    names = _SHADES[shade] | {f"s{i}": pair[shade] for i, pair in enumerate(SERIES)}
    rules = [":root{" + "".join(f"--{name}:{colour};" for name, colour in names.items()) + "}"]
    for step in range(steps + 1):
        colour = _mix(RAMP[shade], step / max(steps, 1))
        ink = "#ffffff" if _luminance(colour) < 0.18 else "#0b1522"
        rules.append(f".k{step}{{fill:{colour}}}.map .t{step}{{fill:{ink}}}")
    return "\n".join(rules)


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def _mix(anchors: Sequence[str], at: float) -> str:
    place = at * (len(anchors) - 1)
    first, second = list(pairwise(anchors))[min(int(place), len(anchors) - 2)]
    part = place - min(int(place), len(anchors) - 2)
    return "#" + "".join(f"{round(a + (b - a) * part):02x}" for a, b in zip(_rgb(first), _rgb(second), strict=True))


def _luminance(colour: str) -> float:
    """The relative luminance of WCAG; below 0.18 white text has the higher contrast."""
    parts = [c / 255 for c in _rgb(colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

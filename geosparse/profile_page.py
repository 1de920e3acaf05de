"""One profile as a self-contained HTML page: maps of layers and heads, and a page section for each head."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import torch

from .artifact import write_atomic
from .ops import TAILS
from .page import html_page, percent
from .planner import make_plan
from .profile import Profile
from .regimes import REGIMES, SIGNATURES

# The N and the mean N that the maps are about, where the profile has them.
SHOWN = 32
LEVELS = 10
_COLOURS = {"retriever": "210 55%", "mixer": "150 55%", "reset": "25 55%", "unclear": "0 0%"}
_CURVES = ("precision", "recall", "f1")
_WIDTH, _HEIGHT = 300, 150

_RULES = """
.map a:hover rect{stroke:currentColor;stroke-width:2}
.head{display:none}
.head:target{display:block}
.curve{fill:none;stroke:currentColor;stroke-width:2}
.control{stroke-dasharray:3 3;opacity:.55;stroke-width:1.5}
.grid{stroke:var(--grid);fill:none}
.panels{display:flex;flex-wrap:wrap;gap:18px}
.panels figcaption{font-size:.85rem;color:var(--muted)}
.panels text{font-size:10px;fill:var(--muted)}
h3{font-size:.95rem;margin:0 0 6px}
"""


def _css() -> str:
    """The style sheet of the maps and curves."""
    shades = (f".h{level} rect{{fill:hsl(215 60% 50% / {(level + 0.5) / LEVELS:.2f})}}" for level in range(LEVELS))
    kinds = (f".r-{name} rect{{fill:hsl({colour} 50% / .75)}}" for name, colour in _COLOURS.items())
    return f"<style>{''.join(shades)}{''.join(kinds)}{_RULES}</style>"


def write_profile_page(path: Path | str, profile: Profile) -> Path:
    """Write one HTML file; same profile, same bytes.

    Raises:
        GeosparseError: The file cannot be written.
    """
    model = profile.model
    facts = [
        model.name,
        model.architecture,
        f"{model.layers} layers × {model.heads} heads ({model.kv_heads} KV)",
        f"{profile.at(profile.length).windows} windows of {profile.length} tokens",
        f"dense NLL {profile.nll:.4f}",
    ]
    header = f'{_css()}<p class="facts">{escape(" · ".join(facts))}</p>'
    keep = min(SHOWN, profile.length)
    n_keep = make_plan(profile, mean_keep=keep).n_keep.tolist()
    sections = [_maps(profile, n_keep, keep), _curves_section(profile), *_heads(profile, n_keep)]
    page = html_page(f"geosparse profile: {model.name}", header, sections, n_keep)
    return write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8", newline="\n"))


def _maps(profile: Profile, n_keep: list[list[int]], keep: int) -> str:
    """Regime, N, sink mass and error of every head; each cell leads to the head's section."""
    regimes = profile.regimes()
    label = [[REGIMES[place] for place in row] for row in regimes.label.tolist()]
    counts = Counter(name for row in label for name in row)
    total = sum(counts.values())
    signatures = profile.longest("signatures").nanmean(0)
    sink = signatures[..., SIGNATURES.index("sink_mass")]
    column = min(range(len(profile.budgets)), key=lambda place: abs(profile.budgets[place] - keep))
    error = profile.relative_output_error("best")[..., column]
    excess = profile.excess_f1().nanmean(0)[..., column]
    n = torch.tensor(n_keep, dtype=torch.float64)
    swatch = '<svg class="r-{}" width="11" height="11"><rect width="11" height="11" rx="2"/></svg>'
    shares = " ".join(f"{swatch.format(name)} {name} {percent(counts[name] / total)}" for name in REGIMES)
    budget = profile.budgets[column]
    maps = [
        _map("Regime", lambda layer, head: (f"r-{label[layer][head]}", label[layer][head]), n_keep, shares),
        _graded("N of the default plan", n.log2(), n, n_keep, f"mean {keep}, colours by doublings", "g"),
        _graded("Sink mass", sink, sink, n_keep, "attention on sinks, from 0 to 1", ".3f"),
        _graded(
            f"Output error at N = {budget}", error.sqrt(), error, n_keep, "of the best tail, relative, squared", ".2g"
        ),
        _graded(f"F above random at N = {budget}", excess, excess, n_keep, "how far the kept tokens stand out", ".3f"),
    ]
    return (
        '<section>\n<h2>Heads</h2>\n<p class="note">Layers down, heads across. Hover over a cell for its value, click '
        f'on it for the head\'s own section.</p>\n<div class="maps">{"".join(maps)}</div>\n</section>'
    )


def _graded(title: str, shade: torch.Tensor, value: torch.Tensor, cells: list[list[int]], note: str, form: str) -> str:
    """A map whose colour follows `shade` between its least and its largest finite value."""
    finite = shade[torch.isfinite(shade)]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    level = ((shade - low) / max(high - low, 1e-12) * LEVELS).nan_to_num(0.0).clamp(0, LEVELS - 1).long().tolist()
    shown = value.tolist()
    return _map(title, lambda layer, head: (f"h{level[layer][head]}", f"{shown[layer][head]:{form}}"), cells, note)


def _map(title: str, cell: Callable[[int, int], tuple[str, str]], cells: list[list[int]], note: str) -> str:
    """One map: `cell` gives the class and the text of a layer and head; `note` is HTML."""
    heads, size = max(map(len, cells)), 14 if len(cells) <= 48 else 9
    parts = []
    for layer, row in enumerate(cells):
        for head in range(len(row)):
            kind, text = cell(layer, head)
            box = (
                f'<rect x="{26 + head * size}" y="{16 + layer * size}" width="{size - 1}" height="{size - 1}" rx="2"/>'
            )
            what = f"<title>layer {layer}, head {head}: {escape(text)}</title>"
            parts.append(f'<a href="#l{layer}h{head}" class="{kind}">{what}{box}</a>')
        if layer % 5 == 0:
            parts.append(f'<text class="end" x="14" y="{16 + layer * size + size - 4}">{layer}</text>')
    wide, high = 28 + heads * size, 18 + len(cells) * size
    return (
        f'<div><h3>{escape(title)}</h3><svg class="map" role="img" aria-label="{escape(title)} by layer and head" '
        f'width="{max(wide, 60)}" height="{high}">{"".join(parts)}</svg><p class="note">{note}</p></div>'
    )


def _curves_section(profile: Profile) -> str:
    """Precision, recall and F over N, averaged over heads, with the random control."""
    chosen = {name: profile.geometry(name).nanmean((0, 1, 2)) for name in _CURVES}
    control = {name: profile.geometry(name, "random").nanmean((0, 1, 2)) for name in _CURVES}
    return (
        '<section>\n<h2>Selected against random tokens</h2>\n<p class="note">Mean over heads. Solid: the N tokens of '
        "largest attention; dashed: random sets of the same size around their own centre. At N = 1 all are 1 by "
        "definition.</p>\n"
        f"{_panels(profile.budgets, chosen, control)}\n</section>"
    )


def _panels(budgets: Sequence[int], chosen: dict[str, torch.Tensor], control: dict[str, torch.Tensor]) -> str:
    figures = []
    for name, values in chosen.items():
        title = {"f1": "F"}.get(name, name)
        lines = _line(budgets, values.tolist(), "curve")
        lines += _line(budgets, control[name].tolist(), "curve control") if name in control else ""
        figures.append(f"<figure>{_axes(budgets, lines)}<figcaption>{title}</figcaption></figure>")
    return f'<div class="panels">{"".join(figures)}</div>'


def _at(budgets: Sequence[int], n: int) -> float:
    span = max(1e-9, math.log2(budgets[-1]) - math.log2(budgets[0]))
    return 26 + (_WIDTH - 40) * (math.log2(n) - math.log2(budgets[0])) / span


def _axes(budgets: Sequence[int], lines: str) -> str:
    """A frame from 0 to 1 over log N."""
    ticks = "".join(
        f'<text x="{_at(budgets, n):.0f}" y="{_HEIGHT - 4}">{n}</text>' for n in budgets[:: max(1, len(budgets) // 5)]
    )
    frame = f'<rect class="grid" x="26" y="8" width="{_WIDTH - 40}" height="{_HEIGHT - 32}"/>'
    scale = f'<text x="6" y="14">1</text><text x="6" y="{_HEIGHT - 24}">0</text>'
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg {size} role="img" aria-label="curve over N">{frame}{scale}{ticks}{lines}</svg>'


def _line(budgets: Sequence[int], values: Sequence[float], kind: str) -> str:
    points = [
        f"{_at(budgets, n):.1f},{8 + (_HEIGHT - 32) * (1 - min(1.0, max(0.0, value))):.1f}"
        for n, value in zip(budgets, values, strict=True)
        if math.isfinite(value)
    ]
    return f'<polyline class="{kind}" points="{" ".join(points)}"/>' if points else ""


def _heads(profile: Profile, n_keep: list[list[int]]) -> list[str]:
    """A section per head, shown when its cell is clicked."""
    curves = {name: profile.geometry(name).nanmean(0) for name in _CURVES}
    control = {name: profile.geometry(name, "random").nanmean(0) for name in _CURVES}
    curves["kept mass"] = profile.kept_mass()
    signatures = profile.longest("signatures").nanmean(0)
    regimes = profile.regimes()
    errors = torch.stack([profile.relative_output_error(tail) for tail in TAILS], -1)
    sections = []
    for layer, row in enumerate(n_keep):
        for head, n in enumerate(row):
            sure = percent(float(regimes.confidence[layer, head]))
            regime = f"{REGIMES[int(regimes.label[layer, head])]} ({sure})"
            facts = {"regime": regime, "N of the default plan": str(n)}
            for name, value in zip(SIGNATURES, signatures[layer, head].tolist(), strict=True):
                if math.isfinite(value):
                    facts[name.replace("_", " ")] = f"{value:.3f}"
            terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
            table = _error_table(profile.budgets, errors[layer, head].tolist())
            panels = _panels(
                profile.budgets,
                {name: values[layer, head] for name, values in curves.items()},
                {name: values[layer, head] for name, values in control.items()},
            )
            sections.append(
                f'<section class="head" id="l{layer}h{head}"><h2>Layer {layer}, head {head}</h2>'
                f'<dl class="terms">{terms}</dl>{panels}<div class="wide">{table}</div></section>'
            )
    return sections


def _error_table(budgets: Sequence[int], rows: list[list[float]]) -> str:
    """Relative output error of each tail over N."""
    head = "".join(f"<th>{tail}</th>" for tail in TAILS)
    lines = "".join(
        f"<tr><td>{n}</td>{''.join(f'<td>{value:.3g}</td>' for value in row)}</tr>"
        for n, row in zip(budgets, rows, strict=True)
    )
    table = f'<table class="rows"><tr><th>N</th>{head}</tr>{lines}</table>'
    return f'{table}<p class="note">Output error, relative, squared.</p>'

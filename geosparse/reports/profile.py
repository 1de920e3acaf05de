"""One profile as a self-contained HTML page: maps of layers and heads, and a page section for each head."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from html import escape
from pathlib import Path

import torch

from ..artifact import write_atomic
from ..assumptions.fits import holds
from ..planner import make_plan
from ..profile import Profile
from ..regimes import REGIMES, SIGNATURES
from .bands import Bands
from .frame import html_page, percent
from .head_sections import CAPTIONS, head_sections
from .heads import assumptions
from .panels import RULES, Panel, panels

# The N and the mean N that the maps are about, where the profile has them.
SHOWN = 32
LEVELS = 10
_COLOURS = {"retriever": "210 55%", "mixer": "150 55%", "reset": "25 55%", "unclear": "0 0%"}

_RULES = """
.map a:hover rect{stroke:currentColor;stroke-width:2}
.head{display:none}
.head:target{display:block}
.fits{display:flex;flex-wrap:wrap;gap:18px 40px;margin:14px 0}
h3{font-size:.95rem;margin:0 0 6px}
"""


def _css() -> str:
    """The style sheet of the maps and curves."""
    shades = (f".h{level} rect{{fill:hsl(215 60% 50% / {(level + 0.5) / LEVELS:.2f})}}" for level in range(LEVELS))
    kinds = (f".r-{name} rect{{fill:hsl({colour} 50% / .75)}}" for name, colour in _COLOURS.items())
    return f"<style>{''.join(shades)}{''.join(kinds)}{RULES}{_RULES}</style>"


def write_profile_page(path: Path | str, profile: Profile, found: Bands | None = None) -> Path:
    """Write one HTML file; same arguments, same bytes.

    Args:
        path: Where to.
        profile: What the page is about.
        found: Its `bands.bands`, drawn where they are given.

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
    sections = [_maps(profile, n_keep, keep), _curves_section(profile), _assumptions_section(profile, found)]
    sections += head_sections(profile, n_keep, found)
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
    error = profile.relative_output_error("blend")[..., column]
    excess = profile.excess_f1().nanmean(0)[..., column]
    n = torch.tensor(n_keep, dtype=torch.float64, device="cpu")
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

    def cell(layer: int, head: int) -> tuple[str, str]:
        told = shown[layer][head]
        return f"h{level[layer][head]}", f"{told:{form}}" if math.isfinite(told) else "–"

    return _map(title, cell, cells, note)


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
    drawn = {
        caption: Panel(
            profile.geometry(name).nanmean((0, 1, 2)).tolist(),
            profile.geometry(name, "random").nanmean((0, 1, 2)).tolist(),
        )
        for name, caption in CAPTIONS.items()
    }
    return (
        '<section>\n<h2>Selected against random tokens</h2>\n<p class="note">Mean over heads. Solid: the N tokens of '
        "largest attention; dashed: random sets of the same size around their own centre. At N = 1 all are 1 by "
        f"definition.</p>\n{panels(profile.budgets, drawn)}\n</section>"
    )


def _assumptions_section(profile: Profile, found: Bands | None) -> str:
    """How many heads meet each assumption, and how often the envelopes hold."""
    counts, fits = assumptions(profile)
    title = "<section>\n<h2>Assumptions and envelopes</h2>\n"
    if fits is None:
        return f'{title}<p class="note">{escape(counts["reason"])}</p>\n</section>'
    tiles = {name: f"{counts[name]} of {counts['heads']}" for name in ("A1", "A2", "A3")}
    tiles["all three"] = f"{counts['all']} of {counts['heads']}"
    if found is not None:
        coverage = found.coverage()
        every = torch.stack(list(holds(fits).values())).all(0)
        for name, heads in (("inside the envelopes", torch.ones_like(every)), ("where all three hold", every)):
            share = float(coverage[heads].nanmean()) if bool(heads.any()) else math.nan
            tiles[name] = percent(share) if math.isfinite(share) else "–"
    told = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles.items())
    level = "" if found is None else f" Their nominal level is {percent(found.level)} for each metric at each N."
    return (
        f'{title}<p class="note">Heads that meet each assumption of the paper: A1 stable value norms, sinks apart; A2 '
        "similarity that decays with distance; A3 attention in pieces by distance. Thresholds and the proof of the "
        f"envelopes: GEOMETRY.md. Envelopes are of the last query of a window, its row drawn from A3.{level}</p>\n"
        f'<dl class="tiles">{told}</dl>\n</section>'
    )

"""The section of one head on a profile's page: curves with envelopes, fits of A1 to A3, output errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import torch

from ..assumptions.envelopes import METRICS
from ..ops import TAILS
from ..profile import Profile
from .bands import Bands
from .frame import percent
from .heads import Facts, head_facts
from .panels import Panel, panels

CAPTIONS = {"precision": "precision", "recall": "recall", "f1": "F"}

# What the parameters of a fit are called, and their units; the others keep their names.
_TERMS = {
    "level": "level of |v|",
    "spread": "spread",
    "compression": "sinks' |v| over the level",
    "sinks": "sinks per window",
    "first": "a sink at position 0, share of windows",
    "length": "decay length, tokens",
    "sink": "mean cosine of a sink with the others",
    "dimension": "effective dimension",
    "ends": "recency, oscillation, plateau end at lag",
    "intercept": "intercepts, nats over uniform",
    "slope": "slopes, nats per doubling",
    "mass": "mass of the pieces",
    "sink_mass": "mass on sinks",
    "sink_spread": "its deviation over queries",
    "mae": "MAE",
    "r2": "R²",
}
_NAMES = {"A1": "stable norms", "A2": "decaying similarity", "A3": "piecewise attention"}


def head_sections(profile: Profile, n_keep: list[list[int]], found: Bands | None) -> list[str]:
    """A section per head, shown when its cell is clicked."""
    curves = {name: profile.geometry(name).nanmean(0) for name in METRICS}
    control = {name: profile.geometry(name, "random").nanmean(0) for name in METRICS}
    mass = profile.kept_mass()
    errors = torch.stack([profile.relative_output_error(tail) for tail in TAILS], -1)
    sections = []
    for facts in head_facts(profile, found):
        at = (facts["layer"], facts["head"])
        drawn = {}
        for column, name in enumerate(METRICS):
            drawn[CAPTIONS[name]] = Panel(
                curves[name][at].tolist(),
                control[name][at].tolist(),
                *(() if found is None else _band(found, at, column)),
            )
        drawn["kept mass"] = Panel(mass[at].tolist())
        sections.append(
            f'<section class="head" id="l{at[0]}h{at[1]}"><h2>Layer {at[0]}, head {at[1]}</h2>'
            f"{_terms(facts, n_keep[at[0]][at[1]])}{panels(profile.budgets, drawn)}{_key(facts)}"
            f'{_fits(facts["assumptions"])}<div class="wide">{_error_table(profile.budgets, errors[at].tolist())}</div>'
            "</section>"
        )
    return sections


def _band(found: Bands, at: tuple[int, int], column: int) -> tuple[Any, Any]:
    """Bounds and measured final queries of one metric, N = 1 left out: there all is 1 by definition."""
    bounds = [side[at][:, column].clone() for side in found.envelope]
    dots = found.measured[:, at[0], at[1], :, column].clone()
    if dots.shape[-1] > 1:
        for part in (*bounds, dots):
            part[..., 0] = torch.nan
    return (bounds[0].tolist(), bounds[1].tolist()), dots.tolist()


def _terms(facts: Facts, n: int) -> str:
    """Regime, N and signatures."""
    told = {"regime": f"{facts['regime']} ({percent(facts['confidence'])})", "N of the default plan": str(n)}
    if facts["operating_n"] is not None:
        told["N of largest F above random"] = f"{facts['operating_n']} ({facts['operating_excess']:+.3f})"
    for name, value in facts["signatures"].items():
        if value is not None:
            told[name.replace("_", " ")] = f"{value:.3f}"
    return f'<dl class="terms">{_pairs(told)}</dl>'


def _key(facts: Facts) -> str:
    """What the lines mean."""
    said = "Solid: mean over queries. Dashed: random sets. At N = 1 all are 1 by definition."
    if "envelope" in facts:
        coverage = facts["envelope"]["coverage"]
        share = "" if coverage is None else f"; here {percent(coverage)} of the dots are inside"
        said += (
            f" Shaded: where A1 to A3 as fitted put {percent(facts['envelope']['level'])} of the last queries of a "
            f"window, at each N; dots: the measured last queries{share}."
        )
    return f'<p class="note">{said}</p>'


def _fits(found: Facts | None) -> str:
    """Parameters and errors of each assumption."""
    if found is None:
        return ""
    columns = []
    for name, fit in found.items():
        verdict = "holds" if fit["holds"] else "does not hold"
        told = {_TERMS.get(key, key): _number(value) for key, value in fit.items() if key != "holds"}
        columns.append(f'<div><h3>{name}, {_NAMES[name]}: {verdict}</h3><dl class="terms">{_pairs(told)}</dl></div>')
    return f'<div class="fits">{"".join(columns)}</div>'


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return "–" if value is None else f"{value:.3g}"


def _pairs(told: dict[str, str]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in told.items())


def _error_table(budgets: Sequence[int], rows: list[list[float]]) -> str:
    """Relative output error of each tail over N."""
    head = "".join(f"<th>{tail}</th>" for tail in TAILS)
    lines = "".join(
        f"<tr><td>{n}</td>{''.join(f'<td>{value:.3g}</td>' for value in row if math.isfinite(value))}</tr>"
        for n, row in zip(budgets, rows, strict=True)
    )
    table = f'<table class="rows"><tr><th>N</th>{head}</tr>{lines}</table>'
    return f'{table}<p class="note">Output error, relative, squared.</p>'

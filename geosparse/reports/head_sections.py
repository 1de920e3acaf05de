"""What a profile's page says of one head: curves with envelopes, fits of A1 to A3, output errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..artifacts.profile import Profile
from ..geometry.envelopes import METRICS
from ..ops import TAILS
from .bands import Bands
from .heads import Facts, head_facts
from .pages import percent
from .panels import Curves, plots

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


def head_sections(profile: Profile, n_keep: list[list[int]], measured_bands: Bands | None) -> list[dict[str, Any]]:
    """What the page says of each head, layer by layer; a section is shown when its cell is clicked."""
    curves = {name: profile.geometry(name).nanmean(0) for name in METRICS}
    control = {name: profile.geometry(name, "random").nanmean(0) for name in METRICS}
    mass = profile.kept_mass()
    errors = torch.stack([profile.relative_output_error(tail) for tail in TAILS], -1)
    sections = []
    for facts in head_facts(profile, measured_bands):
        at = (facts["layer"], facts["head"])
        drawn = {}
        for column, name in enumerate(METRICS):
            drawn[CAPTIONS[name]] = Curves(
                curves[name][at].tolist(),
                control[name][at].tolist(),
                *(() if measured_bands is None else _band(measured_bands, at, column)),
            )
        drawn["kept mass"] = Curves(mass[at].tolist())
        sections.append(
            {
                "layer": at[0],
                "head": at[1],
                "terms": _terms(facts, n_keep[at[0]][at[1]]),
                "plots": plots(profile.budgets, drawn),
                "envelope": _envelope(facts),
                "fits": _fits(facts["assumptions"]),
                "errors": _errors(profile.budgets, errors[at].tolist()),
            }
        )
    return sections


def _band(measured_bands: Bands, at: tuple[int, int], column: int) -> tuple[Any, Any]:
    """Bounds and measured final queries of one metric, N = 1 left out: there all is 1 by definition."""
    bounds = [side[at][:, column].clone() for side in measured_bands.envelope]
    dots = measured_bands.measured[:, at[0], at[1], :, column].clone()
    if dots.shape[-1] > 1:
        for part in (*bounds, dots):
            part[..., 0] = torch.nan
    return (bounds[0].tolist(), bounds[1].tolist()), dots.tolist()


def _terms(facts: Facts, n: int) -> list[tuple[str, str]]:
    """Regime, N and signatures."""
    terms = [("regime", f"{facts['regime']} ({percent(facts['confidence'])})"), ("N of the default plan", str(n))]
    if facts["operating_n"] is not None:
        excess = f"{facts['operating_n']} ({facts['operating_excess']:+.3f})"
        terms.append(("N of largest F above random", excess))
    signatures = facts["signatures"].items()
    return terms + [(name.replace("_", " "), f"{value:.3f}") for name, value in signatures if value is not None]


def _envelope(facts: Facts) -> dict[str, str | None] | None:
    """Level and measured coverage of the shaded band, in percent."""
    if "envelope" not in facts:
        return None
    coverage = facts["envelope"]["coverage"]
    return {
        "level": percent(facts["envelope"]["level"]),
        "coverage": None if coverage is None else percent(coverage),
    }


def _fits(fits: Facts | None) -> list[dict[str, Any]]:
    """Parameters and errors of each assumption."""
    return [
        {
            "name": name,
            "title": _NAMES[name],
            "holds": fit["holds"],
            "terms": [(_TERMS.get(key, key), _number(value)) for key, value in fit.items() if key != "holds"],
        }
        for name, fit in (fits or {}).items()
    ]


def _number(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_number, value))
    return "–" if value is None else f"{value:.3g}"


def _errors(budgets: Sequence[int], rows: list[list[float]]) -> list[list[str]]:
    """N and the relative output error of each tail at it."""
    return [
        [str(n), *(f"{value:.3g}" for value in row if math.isfinite(value))]
        for n, row in zip(budgets, rows, strict=True)
    ]

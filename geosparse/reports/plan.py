"""One plan as a self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path

from ..artifact import write_atomic
from ..ops import TAILS
from ..plan import Plan
from .frame import html_page, map_section


def write_plan_page(path: Path | str, plan: Plan) -> Path:
    """Write one HTML file with the map of N over layers and heads; same plan, same bytes.

    Raises:
        GeosparseError: The file cannot be written.
    """
    model = plan.model
    facts = [
        model.name,
        model.architecture,
        f"{model.layers} layers × {model.heads} heads ({model.kv_heads} KV)",
        f"policy {plan.policy}",
        f"tail {plan.tail}",
    ]
    header = f'<p class="facts">{escape(" · ".join(facts))}</p>'
    n_keep = plan.n_keep.tolist()
    page = html_page(f"geosparse plan: {model.name}", header, [map_section(n_keep), _origin_section(plan)], n_keep)
    return write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8", newline="\n"))


def _origin_section(plan: Plan) -> str:
    tails = {} if plan.head_tails is None else Counter(TAILS[place] for place in plan.head_tails.flatten().tolist())
    facts = {
        "asked for": _listed(plan.budget),
        "mean N": f"{plan.mean_keep:.2f}",
        "reference length": f"{plan.reference_length} tokens",
        "longest windows": "–" if plan.longest_window is None else f"{plan.longest_window} tokens",
        "tails of heads": _listed(tails),
        "found by": _listed(plan.selector_counts()),
        "growth": "–" if plan.growth is None else f"N grows to the power {float(plan.growth.median()):.2f} (median)",
        "predicted": _listed(plan.predicted),
        "verified": _listed({key: value for key, value in plan.verified.items() if key != "search"}),
        "calibration": _listed(plan.calibration),
        "fingerprint of the model": plan.model.fingerprint,
        "made with": _listed(plan.provenance),
    }
    lines = "".join(f'<tr><th scope="row">{name}</th><td>{escape(value)}</td></tr>\n' for name, value in facts.items())
    return (
        f'<section>\n<h2>Where it comes from</h2>\n<div class="wide"><table class="facts">\n{lines}</table></div>\n'
        "</section>"
    )


def _listed(part: Mapping[str, object]) -> str:
    return " · ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in part.items()) or "–"


def _shown(value: object) -> str:
    """Fractions with four digits, what is large without any."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"

"""One plan as a self-contained HTML page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ..artifacts.plan import Plan
from ..ops import TAILS
from ..ops.tails import TailShares
from .head_map import budgets
from .pages import named, render, write_page


def write_plan_page(path: Path | str, plan: Plan) -> Path:
    """Write one HTML file with the map of N over layers and heads; same plan, same bytes.

    Raises:
        GeosparseError: The file cannot be written.
    """
    model = plan.model
    facts = [
        *named(model),
        model.architecture,
        f"{model.layers} layers × {model.heads} heads ({model.kv_heads} KV)",
        f"policy {plan.policy}",
        f"tail {plan.tail}",
    ]
    n_keep = plan.n_keep.tolist()
    title = f"geosparse plan: {model.name}"
    page = render(
        "plan.html.j2", title=title, n_keep=n_keep, facts=facts, budgets=budgets(n_keep), origin=_origin(plan)
    )
    return write_page(path, page)


def _origin(plan: Plan) -> list[tuple[str, str]]:
    """Where a plan comes from, name by name."""
    tails = {} if plan.head_tails is None else Counter(TAILS[index] for index in plan.head_tails.flatten().tolist())
    shares = {}
    if plan.tail_shares is not None:
        medians = plan.tail_shares.flatten(0, 1).median(0).values
        shares = dict(zip(TailShares._fields, medians.tolist(), strict=True))
    return [
        ("asked for", _listed(plan.budget)),
        ("mean N", f"{plan.mean_keep:.2f}"),
        ("reference length", f"{plan.reference_length} tokens"),
        ("longest windows", "–" if plan.longest_window is None else f"{plan.longest_window} tokens"),
        ("tails of heads", _listed(tails)),
        ("median shares of the missing mass", _listed(shares)),
        ("found by", _listed(plan.selector_counts())),
        ("growth", "–" if plan.growth is None else f"N grows to the power {float(plan.growth.median()):.2f} (median)"),
        ("predicted", _listed(plan.predicted)),
        ("verified", _listed({key: value for key, value in plan.verified.items() if key != "search"})),
        ("predicted by kind of text", _listed(plan.kinds)),
        ("calibration", _listed({key: value for key, value in plan.calibration.items() if key != "kinds"})),
        ("fingerprint of the model", plan.model.fingerprint),
        ("made with", _listed(plan.provenance)),
    ]


def _listed(part: Mapping[str, object]) -> str:
    return " · ".join(f"{key.replace('_', ' ')} {_shown(value)}" for key, value in part.items()) or "–"


def _shown(value: object) -> str:
    """Fractions with four digits, what is large without any."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    if not isinstance(value, float):
        return str(value)
    return f"{value:.4g}" if abs(value) < 10_000 else f"{value:,.0f}"

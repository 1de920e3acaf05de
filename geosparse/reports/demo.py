"""What a measurement shows: one self-contained HTML page, and the summary table for the terminal."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..artifacts.profile import BUILT_IN
from ..hf.aliases import weights_of
from ..ops.tails import FAMILY_MEANING, TAIL_RULES
from .frontier import Row, frontier_svg, interval, number, rows_of, save_frontier_png
from .head_map import budgets
from .pages import percent, render, write_page
from .plots import require_plots

__all__ = ["require_plots", "save_frontier_png", "terminal_table", "write_report"]

_WIDTH = 100
_COLUMNS = ("policy", "tail", "keep", "NLL", "excess NLL", "95 % interval", "perplexity", "density %")
_TERMS = {name: f"the missing attention mass goes {rule.meaning}" for name, rule in TAIL_RULES.items()}
_TERMS |= FAMILY_MEANING
_TERMS |= {
    "uniform": "every head keeps the same N",
    "fisher": "the plan: N per head where the error, weighed by the loss gradient, falls most",
    "permuted": "a control: the plan's values of N, dealt to other heads",
}


def write_report(path: Path | str, result: dict[str, Any], n_keep: list[list[int]], *, title: str) -> Path:
    """Write one HTML file that needs nothing from anywhere else; same input, same bytes.

    Args:
        path: The file to write.
        result: A result of `geosparse.result/1`; what was not measured may be missing or None.
        n_keep: Tokens kept, by layer and head.
        title: The heading of the page.

    Raises:
        GeosparseError: matplotlib is missing or the file cannot be written.
    """
    require_plots()
    provenance = _part(result, "provenance")
    page = render(
        "demo.html.j2",
        title=title,
        n_keep=n_keep,
        facts=_facts(result),
        lead=_prose(findings(result)),
        **_plot(result),
        columns=_COLUMNS,
        rows=_table(result),
        budgets=budgets(n_keep),
        kinds=_kinds(result),
        speed=_prose(_speed(result)),
        command=provenance.get("command"),
        provenance=_provenance(result),
    )
    return write_page(path, page)


def terminal_table(result: dict[str, Any]) -> str:
    """The summary for the terminal: plain aligned text, at most 100 columns.

    Args:
        result: A result of `geosparse.result/1`; what was not measured shows as "-".
    """
    lines = [list(_COLUMNS), *([*map(_clip, cells[:2]), *cells[2:]] for cells in _cells(result, "-"))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(_align, range(len(widths)), line, widths)) for line in lines]
    table.insert(1, "  ".join("-" * width for width in widths))
    above = textwrap.wrap(_plain(", ".join(_facts(result))), _WIDTH)
    below = textwrap.wrap(_plain(" ".join(_speed(result))), _WIDTH)
    return "\n".join(line[:_WIDTH].rstrip() for line in [*above, "", *table, "", *below])


def findings(result: dict[str, Any]) -> list[str]:
    """What the numbers show, in sentences that claim no more than the numbers do."""
    plan = _find(result, "fisher", None, "centroid") or _find(result, "fisher", None)
    if plan is None:
        return ["No plan was measured here, so this page compares nothing with uniform top-N."]
    keep, tail = float(plan["mean_keep"]), str(plan.get("tail"))
    said = [
        f"With {_fmt(keep, 'g')} tokens kept per head on average, the plan (fisher, {tail}) costs "
        f"{_cost(plan, ' nats per token over dense attention')}.{_beside_dense(plan)}"
    ]
    uniform = _find(result, "uniform", keep, "renormalize") or _find(result, "uniform", keep)
    same = _find(result, "uniform", keep, tail) or _find(result, "uniform", keep, "centroid")
    control = _find(result, "permuted", keep, tail)
    if uniform is None:
        said.append("Uniform top-N was not measured at this budget.")
    else:
        said.append(
            f"Uniform top-{_fmt(keep, 'g')} ({uniform.get('tail')}) costs {_cost(uniform)}: {_versus(plan, uniform)}."
        )
    if uniform is not None and same is None:
        said.append(
            "These two differ both in the split over heads and in the tail; the table does not separate the two."
        )
    elif same is not None and same is not uniform:
        said.append(f"With the {same.get('tail')} tail, uniform costs {_cost(same)}: {_versus(plan, same)}.")
    if control is not None:
        said.append(f"The same values of N dealt to other heads cost {_cost(control)}: {_versus(plan, control)}.")
    return [*said, "This is one model on one text; it says nothing about other models, texts or tasks."]


def _find(result: dict[str, Any], policy: str, keep: float | None, tail: str | None = None) -> Row | None:
    """The first measured row of a policy at `keep` tokens (None: nearest to 32), with that tail where one is given."""
    rows = [r for r in rows_of(result) if r.get("policy") == policy and number(r.get("excess_nll")) is not None]
    rows = [r for r in rows if (tail is None or r.get("tail") == tail) and (number(r.get("mean_keep")) or 0) > 0]
    if keep is None:
        return min(rows, key=lambda r: abs(math.log(r["mean_keep"] / 32)), default=None)
    return next((r for r in rows if math.isclose(r["mean_keep"], keep, rel_tol=0.02)), None)


def _cost(row: Row, unit: str = "") -> str:
    bounds = interval(row)
    between = f" (95 % interval {_fmt(bounds[0], '.3f')} to {_fmt(bounds[1], '.3f')})" if bounds else ""
    return _fmt(row.get("excess_nll"), ".3f") + unit + between


def _beside_dense(row: Row) -> str:
    bounds = interval(row)
    reaches = bounds is not None and bounds[0] <= 0 <= bounds[1]
    return " The interval reaches zero: this text does not tell it from dense attention." if reaches else ""


def _versus(plan: Row, other: Row) -> str:
    plan_cost, other_cost = float(plan["excess_nll"]), float(other["excess_nll"])
    a, b = interval(plan), interval(other)
    if a and b and a[0] <= b[1] and b[0] <= a[1]:
        return "the intervals overlap, so this text does not clearly rank the two"
    if plan_cost >= other_cost:
        return "the plan does worse here" + (
            f", at {plan_cost / other_cost:.2f} times that cost" if other_cost > 0 else ""
        )
    return f"the plan costs {percent(plan_cost / other_cost)} of that" if plan_cost > 0 else "the plan costs less"


def _speed(result: dict[str, Any]) -> list[str]:
    """What was timed, in sentences."""
    speed = _part(result, "speed")
    dense, sparse = _part(speed, "dense"), _part(speed, "sparse")
    fast, slow = number(sparse.get("tokens_per_second")), number(dense.get("tokens_per_second"))
    if fast is None or slow is None or slow <= 0:
        return ["Speed was not measured."]
    ratio = number(speed.get("ratio"))
    ratio = fast / slow if ratio is None else ratio
    what = f"{_fmt(speed.get('new_tokens'), '.9g')} new tokens at a context of {_fmt(speed.get('context'), '.9g')}"
    plan = f"{sparse.get('policy')}, {sparse.get('tail')}, mean keep {_fmt(sparse.get('mean_keep'), 'g')}"
    said = [
        f"Timed: decoding {what}{_on(result)}. Dense: {_pace(dense)}; sparse ({plan}): {_pace(sparse)}. "
        f"Sparse runs at {ratio:.2f} times the speed of dense."
    ]
    if ratio < 1:
        said.append("It is slower here.")
    note = str(speed.get("note") or "").strip().rstrip(".")
    return [*said, f"{note[0].upper()}{note[1:]}."] if note else said


def _pace(part: dict[str, Any]) -> str:
    each = number(part.get("ms_per_token"))
    return f"{part['tokens_per_second']:.1f} tokens/s" + (f" ({each:.1f} ms per token)" if each is not None else "")


def _on(result: dict[str, Any]) -> str:
    device = _part(result, "provenance").get("device")
    return f", on {device}" if device else ""


def _facts(result: dict[str, Any]) -> list[str]:
    model, protocol = _part(result, "model"), _part(result, "protocol")
    kv = f" ({model['kv_heads']} KV)" if model.get("kv_heads") is not None else ""
    size = f"{model.get('layers')} layers × {model.get('heads')} heads{kv}" if model.get("layers") else None
    text = f"text {protocol['text']}" if protocol.get("text") else None
    windows = (
        f"{protocol.get('windows')} windows × {protocol.get('length')} tokens" if protocol.get("windows") else None
    )
    weights = weights_of(model.get("fingerprint"))
    return [str(fact) for fact in (model.get("name"), weights, model.get("architecture"), size, text, windows) if fact]


def _cells(result: dict[str, Any], missing: str) -> list[list[str]]:
    """The summary table as text: dense first, then the rows in the order of the result."""
    dense = _part(result, "dense")
    cells = [["dense", missing, "all", *_quality(dense, missing), "100.0"]]
    for row in rows_of(result):
        density = number(row.get("density"))
        names = [missing if row.get(key) is None else str(row[key]) for key in ("policy", "tail")]
        share = missing if density is None else f"{100 * density:.1f}"
        cells.append([*names, _fmt(row.get("mean_keep"), "g", missing), *_quality(row, missing), share])
    return cells


def _quality(row: Row, missing: str) -> list[str]:
    bounds, excess, perplexity = interval(row), number(row.get("excess_nll")), number(row.get("perplexity"))
    return [
        _fmt(row.get("nll"), ".4f", missing),
        missing if excess is None else _signed(excess),
        f"[{_signed(bounds[0])}, {_signed(bounds[1])}]" if bounds else missing,
        _fmt(perplexity, ".2f" if perplexity is not None and perplexity < 1e6 else ".3g", missing),
    ]


def _signed(value: float) -> str:
    return format(value, "+.4f" if abs(value) < 10 else "+.3g")


def _plot(result: dict[str, Any]) -> dict[str, Any]:
    """The plot, what its bars are, and what the names in it mean."""
    rows = rows_of(result)
    bounds = [bound for row in rows if (bound := interval(row))]
    used = [str(row.get(key)) for key in ("policy", "tail") for row in rows]
    return {
        "plot": frontier_svg(result) if any(number(row.get("excess_nll")) is not None for row in rows) else None,
        "bars": bool(bounds),
        "bars_below": any(low <= 0 < high for low, high in bounds),
        "terms": [(name, _TERMS[name]) for name in dict.fromkeys(used) if name in _TERMS],
    }


def _table(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the summary table with the classes that they have on the page."""
    cells = _cells(result, "–")
    best = _best(rows_of(result))
    rows, before = [], cells[0][:2]
    for row, line in enumerate(cells):
        marks = [mark for mark, on in (("group", line[:2] != before), ("best", row - 1 in best)) if on]
        before = line[:2]
        rows.append({"marks": marks, "cells": [*line[:2], *(cell.replace("-", "−") for cell in line[2:])]})
    return rows


def _best(rows: Sequence[Row]) -> set[int]:
    """Places of the rows with the lowest excess NLL among those of the same budget."""
    best: dict[int, tuple[float, int]] = {}
    for line, row in enumerate(rows):
        keep, excess = number(row.get("mean_keep")), number(row.get("excess_nll"))
        if keep is not None and excess is not None:
            best[round(keep)] = min(best.get(round(keep), (excess, line)), (excess, line))
    return {line for _, line in best.values()}


def _kinds(result: dict[str, Any]) -> list[tuple[str, str]]:
    """The kinds of text that the plan has seen, and what it is predicted to lose on each."""
    kinds = _part(result, "kinds")
    return [(kind.removeprefix(BUILT_IN), _fmt(value, ".4f")) for kind, value in kinds.items()]


def _provenance(result: dict[str, Any]) -> list[tuple[str, str]]:
    facts = {
        **{key: _listed(_part(result, key)) for key in ("model", "protocol") if _part(result, key)},
        **{key: value for key, value in _part(result, "provenance").items() if key != "command"},
    }
    return [(key.replace("_", " "), _show(value)) for key, value in facts.items()]


def _listed(part: dict[str, Any]) -> str:
    return " · ".join(f"{key.replace('_', ' ')} {_show(value)}" for key, value in part.items())


def _show(value: object) -> str:
    return "–" if value is None else str(value)


def _prose(sentences: list[str]) -> str:
    return " ".join(sentences).replace(" %", "\u00a0%")


def _part(result: dict[str, Any], key: str) -> dict[str, Any]:
    part = result.get(key)
    return part if isinstance(part, dict) else {}


def _fmt(value: object, spec: str, missing: str = "–") -> str:
    parsed = number(value)
    return missing if parsed is None else format(parsed, spec)


def _align(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def _clip(cell: str) -> str:
    cell = _plain(cell)
    return cell if len(cell) <= 11 else cell[:8] + "..."


def _plain(text: str) -> str:
    """Without control characters: a name from a file must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def markdown_table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table for a README: excess NLL with its interval, perplexity and density."""
    lines = [
        "| policy | tail | mean N | excess NLL (95 % interval) | perplexity | density |",
        "|---|---|---|---|---|---|",
        f"| dense | | all | | {_fmt(_part(result, 'dense').get('perplexity'), '.2f')} | 100 % |",
    ]
    for row in rows_of(result):
        bounds = interval(row)
        excess, density = number(row.get("excess_nll")), number(row.get("density"))
        cost = "–" if excess is None else _signed(excess)
        cost += "" if bounds is None else f" ({_signed(bounds[0])} to {_signed(bounds[1])})"
        share = "–" if density is None else percent(density)
        cells = [row.get("policy"), row.get("tail"), _fmt(row.get("mean_keep"), "g"), cost]
        lines.append(f"| {' | '.join(map(str, cells))} | {_fmt(row.get('perplexity'), '.2f')} | {share} |")
    return "\n".join(lines)

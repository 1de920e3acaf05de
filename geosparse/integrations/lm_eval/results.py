"""What both runs say together: a row per metric with the paired difference and the density, warnings, a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from statistics import fmean
from typing import Any

from ...artifacts.plan import Plan
from ...hf.aliases import weights_line, weights_of
from ...hf.identity import identify
from ...measure.loss import served
from ...utils.files import finite_or_none
from ...utils.intervals import mean_interval
from ...utils.provenance import device_name, versions
from .model import NONE, Work, share, too_short

SCHEMA = "geosparse.lm-eval/1"
_COLUMNS = ("task", "metric", "samples", "dense", "sparse", "difference", "95 % interval", "changed", "density %")


@dataclass(frozen=True)
class HarnessRun:
    """One evaluation: lm-eval's results, and what the receipt says of it."""

    results: dict[str, Any]
    work: dict[str, Work]
    density: dict[str, float | None]
    seconds: float  # without building the tasks


def summarize(runs: dict[str, HarnessRun], model: Any, plan: Plan | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The JSON object that `run` returns, from its runs `dense` and `sparse`, either or both."""
    rows = _rows(runs)
    sparse = runs.get("sparse")
    identity = identify(model)
    return {
        "schema": SCHEMA,
        "model": identity.to_json(),
        "weights": weights_of(identity.fingerprint),
        **served(model, plan),
        "plan": plan and {"policy": plan.policy, "tail": plan.tail, "mean_keep": plan.mean_keep},
        "tasks": rows,
        "density": sparse and sparse.density["density"],
        "mean_kept": sparse and sparse.density["mean_kept"],
        "warnings": _warnings(rows, sparse),
        "seconds": {label: each.seconds for label, each in runs.items()},
        "settings": settings,
        "versions": {task: str(version) for task, version in _first(runs)["versions"].items()},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device_name(model.device),
        "provenance": versions(),
    }


def _first(runs: dict[str, HarnessRun]) -> dict[str, Any]:
    """lm-eval's results of the first run: what does not depend on the model is the same in both."""
    return next(iter(runs.values())).results


def _rows(runs: dict[str, HarnessRun]) -> list[dict[str, Any]]:
    rows = []
    for task, metrics in _first(runs)["results"].items():
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if chosen and not metric.endswith("_stderr") and not _is_absent(metric, value):
                rows.append(_row(runs, task, metric, chosen))
    return rows


def _is_absent(metric: str, value: Any) -> bool:
    """RULER's metrics are context lengths, and -1 stands for a length that was not asked for."""
    return metric.isdigit() and value == -1


def _row(runs: dict[str, HarnessRun], task: str, metric: str, chosen: str) -> dict[str, Any]:
    first = _first(runs)
    row: dict[str, Any] = {"task": task, "metric": metric, "filter": chosen}
    for label in ("dense", "sparse"):
        metrics = runs[label].results["results"][task] if label in runs else {}
        row[label] = _number(metrics.get(f"{metric},{chosen}"))
        row[f"{label}_stderr"] = _number(metrics.get(f"{metric}_stderr,{chosen}"))
    row["higher_is_better"] = first["higher_is_better"].get(task, {}).get(metric)
    row["difference"] = None if row["dense"] is None or row["sparse"] is None else row["sparse"] - row["dense"]
    scores = {label: _per_document(each.results, row) for label, each in runs.items()}
    row |= {"changed": None, "difference_interval": None} if row["difference"] is None else _paired(row, scores)
    row["density"] = share(runs["sparse"].work.get(task, NONE)) if "sparse" in runs else None
    # With several context lengths, RULER has fewer documents per length than in all.
    row["samples"] = len(next(iter(scores.values()))) or first["n-samples"].get(task, {}).get("effective")
    return row


def _number(value: Any) -> float | None:
    return finite_or_none(float(value)) if isinstance(value, Real) else None


def _per_document(results: dict[str, Any], row: dict[str, Any]) -> dict[Any, float]:
    values = {}
    for sample in results["samples"].get(row["task"], ()):
        value = _number(sample.get(row["metric"]))
        if sample["filter"] == row["filter"] and value is not None and not _is_absent(row["metric"], value):
            values[sample["doc_id"]] = value
    return values


def _paired(row: dict[str, Any], scores: Mapping[str, dict[Any, float]]) -> dict[str, Any]:
    """How many documents' scores changed, and the interval of the paired difference where the score is their mean."""
    dense, sparse = scores["dense"], scores["sparse"]
    if not dense or dense.keys() != sparse.keys():
        return {"changed": None, "difference_interval": None}
    differences = [sparse[document] - dense[document] for document in dense]
    changed = sum(difference != 0 for difference in differences)
    is_mean = all(abs(fmean(each.values()) - row[label]) < 1e-9 for label, each in scores.items())
    # Without a single change there is no spread to take an interval from, which is not certainty.
    interval = mean_interval(differences) if is_mean and changed else None
    return {"changed": changed, "difference_interval": interval and list(interval)}


def _warnings(rows: list[dict[str, Any]], sparse: HarnessRun | None) -> list[str]:
    warnings: dict[str, None] = {}  # a set that keeps its order: the rows of a task say the same
    for row in rows if sparse else ():
        task = row["task"]
        if (warning := too_short(task, row["density"])) is not None:
            warnings[warning] = None
        if row["dense"] == 0 and row["higher_is_better"]:
            warnings[f"{task}: the dense model scores 0 in {row['metric']}, so sparsity has nothing to lose there."] = (
                None
            )
    if sparse and sparse.density["density"] is None:
        warnings["Every sparse answer came from the cache of --use_cache: nothing was computed, no density known."] = (
            None
        )
    return list(warnings)


def table(result: dict[str, Any]) -> str:
    """A result of `run` as aligned text for the terminal."""
    lines = [_COLUMNS, *map(_cells, result["tasks"])]
    if result["plan"] is None:
        lines = [line[:4] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))
    return "\n".join(
        [
            _headline(result),
            weights_line(result["model"]["name"], result["model"]["fingerprint"]),
            "",
            *(_aligned(line, widths) for line in lines),
        ]
    )


def _aligned(line: tuple[str, ...], widths: list[int]) -> str:
    left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
    return "  ".join(left + right).rstrip()


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    interval = row["difference_interval"]
    return (
        row["task"],
        row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})",
        _shown(row["samples"], "d"),
        _scored(row, "dense"),
        _scored(row, "sparse"),
        _shown(row["difference"], "+.4f"),
        f"[{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else "-",
        _shown(row["changed"], "d"),
        _shown(row["density"] and 100 * row["density"], ".2f"),
    )


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _scored(row: dict[str, Any], label: str) -> str:
    error = row[f"{label}_stderr"]
    return _shown(row[label], ".4f") + ("" if error is None else f" ±{error:.4f}")


def _headline(result: dict[str, Any]) -> str:
    parts = [f"{result['model']['name']} ({result['dtype']}, {result['device']})"]
    if plan := result["plan"]:
        parts.append(f"{plan['policy']}/{plan['tail']}, {plan['mean_keep']:g} tokens kept per head")
        if result["density"] is not None:
            parts.append(f"density {100 * result['density']:.2f} %, {result['mean_kept']:.1f} tokens kept per query")
    parts.append(", ".join(f"{label} {seconds:.0f} s" for label, seconds in result["seconds"].items()))
    return "; ".join(parts)

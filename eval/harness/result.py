"""The result of a recipe: typed, checked when read, and without anything that depends on the moment.

Three files: `result.json` (scores and where they come from: the same bytes however often the run was stopped),
`samples.jsonl` (one line per task, metric and variant: the score of every sample) and `timing.json` (seconds, ms per
token, bytes of the cache).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from geosparse.errors import GeosparseError
from geosparse.utils.files import damaged, read_json, write_atomic, write_json

from .methods import DENSE
from .paired import paired, recovery
from .task import Column, Metric, Task

SCHEMA = "geosparse.eval/1"
TIMING_SCHEMA = "geosparse.eval.timing/1"
MAX_TELLING_DENSITY = 0.95


@dataclass(frozen=True)
class RunInfo:
    """What was run: `limit` is of `--limit`, `model` as `geosparse.hf.identity` says it."""

    recipe: str
    title: str
    recipe_sha256: str
    limit: int | None
    model: dict[str, Any]
    dtype: str


@dataclass(frozen=True)
class VariantInfo:
    """One way the model was run; `plans` has a hash per context length, `mean_keep` is null for peers and dense."""

    id: str
    policy: str | None
    tail: str | None
    selector: str | None
    mean_keep: float | None
    density: float | None
    peer: str | None
    plans: dict[str, str]


@dataclass(frozen=True)
class TaskInfo:
    """One task: hashes of its definition and data, samples there are and samples that were scored."""

    id: str
    task: str
    version: str
    sha256: str
    data_sha256: str
    length: int
    samples_original: int
    samples_effective: int
    metrics: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Measurement:
    """One metric of one task under one variant; what is paired is null for the dense model.

    `density` is kept over visible tokens in this task, `mean_kept` the same per query and head.
    """

    task: str
    metric: str
    variant: str
    value: float
    stderr: float | None
    samples: int
    density: float | None
    difference: float | None
    interval: tuple[float, float] | None
    changed: int | None
    mcnemar: float | None
    recovery: float | None


@dataclass(frozen=True)
class Summary:
    """One variant over the tasks whose dense score is above its floor: the mean recovery, and the worst one."""

    variant: str
    tasks: int
    mean_recovery: float
    worst_recovery: float
    worst_task: str


@dataclass(frozen=True)
class Result:
    """Everything in `result.json`."""

    run: RunInfo
    variants: list[VariantInfo]
    tasks: list[TaskInfo]
    measurements: list[Measurement]
    summary: list[Summary]
    warnings: list[str]
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {"schema": SCHEMA} | asdict(self)

    def of(self, task: str, metric: str) -> dict[str, Measurement]:
        """Measurements of one metric by variant."""
        return {m.variant: m for m in self.measurements if (m.task, m.metric) == (task, metric)}

    def main_metric(self, task: str) -> str:
        """The metric that stands for a task."""
        info = next(info for info in self.tasks if info.id == task)
        return next(name for name, metric in info.metrics.items() if metric["main"])


def read_result(path: Path) -> Result:
    """Read and check `result.json`.

    Raises:
        GeosparseError: Not there, of another schema, or not complete.
    """
    data = read_json(path, "result")
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise damaged(path, "result", f"expected the schema {SCHEMA}")
    kinds = {"variants": VariantInfo, "tasks": TaskInfo, "measurements": Measurement, "summary": Summary}
    try:
        lists = {key: [_typed(kind, item) for item in data[key]] for key, kind in kinds.items()}
        return Result(
            run=_typed(RunInfo, data["run"]), warnings=data["warnings"], provenance=data["provenance"], **lists
        )
    except (KeyError, TypeError) as error:
        raise damaged(path, "result", f"it is not complete ({error})") from error


def _typed(kind: Any, data: dict[str, Any]) -> Any:
    names = {field.name for field in fields(kind)}
    if names != data.keys():
        raise KeyError(f"{kind.__name__}: {', '.join(sorted(names ^ data.keys()))}")
    return kind(**data)


@dataclass(frozen=True)
class TaskScores:
    """One task under all its variants: its metrics, and a column by variant and metric."""

    task: Task
    metrics: dict[str, Metric]
    columns: dict[str, dict[str, Column]]


def measurements_of(scores: TaskScores, densities: dict[str, float | None]) -> list[Measurement]:
    """The rows of one task, dense first."""
    rows = []
    for name, metric in scores.metrics.items():
        dense = scores.columns[DENSE][name]
        for variant, columns in scores.columns.items():
            column = columns[name]
            pair = None if variant == DENSE else paired(dense.values, column.values, metric.kind)
            whole = None if variant == DENSE else column.value - dense.value
            rows.append(
                Measurement(
                    task=scores.task.id,
                    metric=name,
                    variant=variant,
                    value=column.value,
                    stderr=column.stderr,
                    samples=len(column.values) or scores.task.effective,
                    density=densities.get(variant),
                    difference=whole,
                    interval=pair.interval if pair and _is_mean(pair.difference, whole) else None,
                    changed=pair.changed if pair else None,
                    mcnemar=pair.mcnemar if pair else None,
                    recovery=None
                    if variant == DENSE
                    else recovery(dense.value, column.value, metric.kind, metric.higher_is_better),
                )
            )
    return rows


def _is_mean(mean: float, whole: float | None) -> bool:
    """Whether the score is the mean of the samples' scores, so that an interval of the one is one of the other."""
    return whole is not None and abs(mean - whole) < 1e-9


def at_floor(metric: Metric, dense: Measurement) -> bool:
    """Whether the dense score is within two standard errors of guessing: nothing to lose there."""
    if metric.chance is None or not metric.higher_is_better:
        return False
    return dense.value <= metric.chance + 2 * (dense.stderr or 0.0)


def summarize(scores: Sequence[TaskScores], rows: Sequence[Measurement]) -> tuple[list[Summary], list[str]]:
    """Recovery over tasks per variant, and warnings: tasks at their floor, contexts shorter than the budgets."""
    recoveries: dict[str, dict[str, float]] = {}
    warnings = []
    for each_task in scores:
        task = each_task.task
        name, metric = next((name, metric) for name, metric in each_task.metrics.items() if metric.main)
        measured = [row for row in rows if (row.task, row.metric) == (task.id, name)]
        dense = next(row for row in measured if row.variant == DENSE)
        floor = at_floor(metric, dense)
        if floor:
            warnings.append(
                f"{task.id}: dense {name} is {dense.value:.3g}, no better than guessing; left out of means."
            )
        for row in measured:
            if row.density is not None and row.density >= MAX_TELLING_DENSITY:
                warnings.append(
                    f"{task.id}, {row.variant}: the density is {row.density:.2f}: contexts are hardly longer than the "
                    "budgets, so this run shows nothing of the plan."
                )
            if row.recovery is not None and not floor:
                recoveries.setdefault(row.variant, {})[task.id] = row.recovery
    return [
        Summary(variant, len(each), fmean(each.values()), min(each.values()), min(each, key=lambda task: each[task]))
        for variant, each in recoveries.items()
    ], warnings


def write_samples(path: Path, scores: Sequence[TaskScores]) -> None:
    """One line per task, metric and variant."""
    lines = [
        json.dumps(
            {"task": each.task.id, "metric": metric, "variant": variant, "values": column.values}, allow_nan=False
        )
        for each in scores
        for variant, columns in each.columns.items()
        for metric, column in columns.items()
        if column.values
    ]
    write_atomic(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n", encoding="utf-8"))


def write_result(folder: Path, result: Result) -> None:
    """Write `result.json`."""
    write_json(folder / "result.json", result.to_json())


def read_timing(folder: Path) -> dict[str, Any]:
    """`timing.json`; empty where there is none."""
    path = folder / "timing.json"
    if not path.exists():
        return {"schema": TIMING_SCHEMA, "rows": []}
    data = read_json(path, "timing")
    if not isinstance(data, dict) or data.get("schema") != TIMING_SCHEMA:
        raise GeosparseError(f"{path} is not a timing file: expected the schema {TIMING_SCHEMA}; run the recipe again.")
    return data

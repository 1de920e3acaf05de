"""A committed result held against samples that are scored anew: whether its table can be repeated here."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from geosparse.artifacts.plan import Plan
from geosparse.errors import GeosparseError
from geosparse.utils.files import damaged, os_errors_as

from .recipe import Recipe
from .result import read_result, read_timing
from .task_runner import TaskRunner

# Half of the last digit that tables print of a loss; an accuracy or an answer that differs, differs by far more.
SCORE_TOLERANCE = 5e-4


@dataclass(frozen=True)
class Row:
    """One metric of one task: samples compared over all variants, how many have the same score to the last bit, and
    where the score differs most."""

    task: str
    metric: str
    compared: int
    equal: int
    largest: float
    where: str


@dataclass(frozen=True)
class Check:
    """Scores side by side, and per task and variant the milliseconds per token, committed and here, where timed."""

    rows: list[Row]
    speed: dict[str, tuple[float, float]]
    versions: list[str]

    @property
    def same(self) -> bool:
        """Whether no score differs by more than `SCORE_TOLERANCE`."""
        return all(row.largest <= SCORE_TOLERANCE for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"within": SCORE_TOLERANCE, "same": self.same}

    def text(self, folder: Path) -> str:
        """For the terminal."""
        lines = [
            f"{row.task}, {row.metric}: {row.equal} of {row.compared} scores equal, "
            f"largest difference {row.largest:.2g}{f' ({row.where})' if row.largest else ''}"
            for row in self.rows
        ]
        lines += [f"{what}: {here:.1f} ms per token, committed {then:.1f}" for what, (then, here) in self.speed.items()]
        lines += [f"{folder} was made with {text}" for text in self.versions]
        compared = sum(row.compared for row in self.rows)
        verdict = (
            f"all within {SCORE_TOLERANCE} of {folder}"
            if self.same
            else f"differs from {folder} by more than {SCORE_TOLERANCE}"
        )
        return "\n".join([*lines, "", f"{compared} scores anew: {verdict}."])


def committed_plans(folder: Path, recipe: Recipe) -> dict[tuple[str, int], Plan]:
    """The plans of a result, by variant and length.

    Raises:
        GeosparseError: There is no result, or it is one of the recipe as it was before.
    """
    if not (folder / "result.json").exists():
        raise GeosparseError(f"{folder} holds no result to check: run the recipe first, without --check.")
    if read_result(folder / "result.json").run.recipe_sha256 != recipe.sha256:
        raise GeosparseError(
            f"{folder} is the result of a recipe that has changed since: run it again, without --check."
        )
    names = {path: path.stem.rsplit("-at-", 1) for path in sorted((folder / "plans").glob("*.json"))}
    return {(variant, int(length)): Plan.load(path) for path, (variant, length) in names.items()}


def compare(folder: Path, runners: Sequence[TaskRunner], versions: Mapping[str, str | None]) -> Check:
    """Hold what the runners have scored, the first samples of each task, against the result in `folder`."""
    committed = _samples(folder / "samples.jsonl")
    rows, speed = [], {}
    then = {(row["task"], row["variant"]): row for row in read_timing(folder)["rows"]}
    for runner in runners:
        differences: dict[str, list[tuple[float, str]]] = {}
        for method in runner.methods:
            for metric, column in runner.column(method).items():
                old = committed.get((runner.task.id, metric, method.id), [])
                pairs = zip(old[: len(column.values)], column.values, strict=False)
                differences.setdefault(metric, []).extend(
                    (abs(new - before), f"{method.id}, sample {index}") for index, (before, new) in enumerate(pairs)
                )
        rows += [
            Row(runner.task.id, metric, len(each), sum(not size for size, _ in each), *max(each))
            for metric, each in differences.items()
            if each
        ]
        for row in runner.timing():
            before = then.get((row["task"], row["variant"]), {})
            for key in ("ms_per_token", "ms_per_token_torch_products"):
                if key in row and key in before:
                    how = "" if key == "ms_per_token" else ", weights multiplied by torch"
                    speed[f"{row['task']}, {row['variant']}{how}"] = before[key], row[key]
    if not rows:
        raise GeosparseError(f"{folder} has no scores of these tasks and variants to compare with.")
    made = read_result(folder / "result.json").provenance.get("versions", {})
    others = [f"{name} {made[name]}, here {versions.get(name)}" for name in made if made[name] != versions.get(name)]
    return Check(rows, speed, others)


def _samples(path: Path) -> dict[tuple[str, str, str], list[float]]:
    with os_errors_as("read", path):
        lines = path.read_text(encoding="utf-8").splitlines()
    try:
        rows = [json.loads(line) for line in lines]
        return {(row["task"], row["metric"], row["variant"]): row["values"] for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, "samples file", "a line is not one of samples") from error

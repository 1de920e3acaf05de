"""Scoring what is missing, and putting together what is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from geosparse.errors import GeosparseError

from .methods import DENSE, Method
from .result import TaskScores
from .samples import Part
from .task import Column, Task

Tell = Callable[[str], object]


class TaskRunner:
    """One task under all its methods: where the samples are kept, and what is missing."""

    def __init__(self, task: Task, methods: list[Method], parts: dict[str, Part], samples: int) -> None:
        """Score nothing yet.

        Args:
            task: What is scored.
            methods: Under which; the dense one first.
            parts: The samples of each method, by its id.
            samples: How many to score.
        """
        self.task = task
        self.methods = methods
        self.parts = parts
        self.samples = samples

    def of(self, methods: Sequence[str]) -> TaskRunner:
        """The same with some of its methods; with all where none is named."""
        chosen = [method for method in self.methods if not methods or method.id in methods]
        return TaskRunner(self.task, chosen, self.parts, self.samples)

    def missing(self) -> int:
        """Samples still to be scored, all methods together."""
        return sum(sample not in self.parts[m.id].records for m in self.methods for sample in range(self.samples))

    def run(self, tell: Tell, only: Sequence[str] = ()) -> None:
        """Score what is missing, a block of samples under one method after the other; `only` these, if any."""
        for start in range(0, self.samples, self.task.block):
            block = range(start, min(start + self.task.block, self.samples))
            for method in self.methods:
                if only and method.id not in only:
                    continue
                todo = [sample for sample in block if sample not in self.parts[method.id].records]
                if todo:
                    self._score(method, todo)
                    tell(f"{self.task.id}: {method.id}, {block.stop} of {self.samples}")

    def _score(self, method: Method, samples: list[int]) -> None:
        model = self.task.setting.model
        if not self.task.applies or method.plan is None:
            for sample in samples:
                method.forget()
                self._one(method, sample, None)
            return
        from geosparse.sparsify.patch import sparsified

        with sparsified(model, method.plan) as receipt:
            for sample in samples:
                receipt.reset()
                self._one(method, sample, receipt)
                receipt.verify()

    def _one(self, method: Method, sample: int, receipt: Any) -> None:
        start = time.perf_counter()
        outcome = self.task.score(sample, method)
        kept, visible = method.counted if receipt is None else (int(receipt.kept.sum()), int(receipt.visible.sum()))
        record = {"sample": sample, "values": outcome.values, "kept": kept, "visible": visible}
        record["timing"] = outcome.timing | {"seconds": round(time.perf_counter() - start, 4)}
        if outcome.answers is not None:
            record["answers"] = outcome.answers
        try:
            self.parts[method.id].append(record)
        except ValueError as error:
            raise GeosparseError(
                f"{self.task.id}, {method.id}, sample {sample}: a score is no finite number: in half precision the "
                "model may overflow (try dtype: float32), else its weights may be damaged."
            ) from error

    def _records(self, method: Method) -> list[dict[str, Any]]:
        return [self.parts[method.id].records[sample] for sample in range(self.samples)]

    def column(self, method: Method) -> dict[str, Column]:
        """Every metric of one method."""
        return self.task.finish(self._records(method)).columns

    def scores(self) -> TaskScores:
        """Every metric of every method; metrics that are no number under one method are left out."""
        scores = {method.id: self.task.finish(self._records(method)) for method in self.methods}
        shared = [name for name in scores[DENSE].columns if all(name in each.columns for each in scores.values())]
        known = {name: metric for each in scores.values() for name, metric in each.metrics.items()}
        columns = {variant: {name: each.columns[name] for name in shared} for variant, each in scores.items()}
        return TaskScores(self.task, {name: metric for name, metric in known.items() if name in shared}, columns)

    def densities(self) -> dict[str, float | None]:
        """Kept over visible tokens, by method."""
        densities: dict[str, float | None] = {}
        for method in self.methods:
            records = self._records(method)
            kept, visible = (sum(record[key] for record in records) for key in ("kept", "visible"))
            densities[method.id] = kept / visible if visible else None
        return densities

    def timing(self) -> list[dict[str, Any]]:
        """One row per method: seconds in all, medians of everything else."""
        rows = []
        for method in self.methods:
            records = [record["timing"] for record in self._records(method)]
            row = {"task": self.task.id, "variant": method.id, "seconds": round(sum(r["seconds"] for r in records), 3)}
            others = [name for name in records[0] if name != "seconds"]
            rows.append(row | {name: median(record[name] for record in records) for name in others})
        return rows

"""What every task is: samples that are scored one at a time, and metrics that sum them up."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from types import MappingProxyType
from typing import Any, ClassVar

from geosparse.errors import GeosparseError
from geosparse.utils.files import dump_json

from .methods import Method


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        kind: "accuracy" (1 or 0 per sample), "nll" (nats per token) or "other".
        higher_is_better: The direction; None where it is not known.
        chance: What guessing scores; None where nothing is known of it.
        main: It stands for the task in summaries.
    """

    kind: str
    higher_is_better: bool | None
    chance: float | None = None
    main: bool = False


@dataclass(frozen=True)
class Column:
    """One metric of one task under one variant: per sample and together."""

    values: list[float]
    value: float
    stderr: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Column:
        """The plain mean and its standard error."""
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(list(values), fmean(values), error)


@dataclass(frozen=True)
class Scores:
    """What the samples come to under one method, by the name of the metric: what the numbers mean, and the numbers."""

    metrics: dict[str, Metric]
    columns: dict[str, Column]


@dataclass(frozen=True)
class Outcome:
    """One sample: values that depend on the model alone, measurements that depend on the moment, answers to keep."""

    values: dict[str, float]
    timing: dict[str, float] = field(default_factory=dict)
    answers: Any = None


@dataclass(frozen=True)
class Setting:
    """What tasks are prepared with; `shrinking`: methods that shrink the cache are among those to come."""

    model: Any
    tokenizer: Any
    data: Path | None
    scratch: Path
    shrinking: bool = False

    def text(self, source: str) -> str | Path:
        """A text's place: `data:NAME` lies below the folder of `--data`, everything else is what `load_texts` takes."""
        if not source.startswith("data:"):
            return source
        if self.data is None:
            raise GeosparseError(f"{source} lies below a folder that was not named: give --data FOLDER.")
        return self.data / source.removeprefix("data:")


class Task:
    """A task that is ready to be scored.

    Attributes:
        kind: Its name in recipes.
        version: Goes up when the same settings would give other samples or other scores.
        settings_class: The dataclass of its settings; has an `id` and a `length`.
        block: How many samples are scored under one variant before the next variant has its turn.
        applies: The engine makes the model sparse around `score`; otherwise the task does that itself.
        metrics: What it scores, where that is known before the first sample.
    """

    kind: ClassVar[str]
    version: ClassVar[str]
    settings_class: ClassVar[type]
    block: ClassVar[int] = 8
    applies: ClassVar[bool] = True
    metrics: Mapping[str, Metric] = MappingProxyType({})

    def __init__(self, settings: Any, setting: Setting) -> None:
        """Prepare the samples.

        Args:
            settings: Of the recipe, a `settings_class`.
            setting: Model, tokenizer and folders.
        """
        self.settings = settings
        self.setting = setting

    original: int
    effective: int
    data_sha256: str

    @property
    def id(self) -> str:
        """Its name in results."""
        return str(self.settings.id)

    def about(self) -> dict[str, Any]:
        """Everything that decides its samples and scores."""
        return {
            "task": self.kind,
            "version": self.version,
            "settings": {key: value for key, value in asdict(self.settings).items() if key != "samples"},
            "data_sha256": self.data_sha256,
        }

    def sha256(self) -> str:
        """Of `about`."""
        return hashlib.sha256(dump_json(self.about()).encode()).hexdigest()

    def score(self, sample: int, method: Method) -> Outcome:
        """Score one sample with the model as it is."""
        raise NotImplementedError

    def finish(self, records: Sequence[dict[str, Any]]) -> Scores:
        """The metrics over the records of the samples, in order."""
        columns = {name: Column.of([record["values"][name] for record in records]) for name in self.metrics}
        return Scores(dict(self.metrics), columns)

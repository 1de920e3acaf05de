"""An unmodified task of lm-evaluation-harness, answered document by document so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from numbers import Real
from typing import Any

import numpy

from geosparse.errors import GeosparseError

from ..harness.methods import Method
from ..harness.task import Column, Metric, Outcome, Scores, Setting, Task
from .local_data import data_below
from .shared_prefix import shared_prefix_class

SEED = 1234
# The metric that stands for a task: the first of these that it has.
MAIN_METRICS = ("acc_norm", "acc", "exact_match", "word_perplexity", "perplexity")
PERPLEXITY_METRICS = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")


@dataclass(frozen=True)
class LmEvalSettings:
    """The first `samples` documents of the lm-eval task `name`; `length` is planned for and, for tasks of RULER and
    BABILong, the context they are built with (`metadata`); `max_length` cuts contexts (null: the model's)."""

    name: str
    length: int
    samples: int
    num_fewshot: int | None
    max_length: int | None
    metadata: dict[str, Any]

    kind = "lm_eval"

    @property
    def id(self) -> str:
        """Its name in lm-eval, and the context where the task is built with one."""
        return f"{self.name}-{self.length}" if self.metadata else self.name


class LmEval(Task):
    """Requests and metrics are lm-eval's; answers come from the model, one document at a time, and are kept.

    At the end lm-eval evaluates a model that answers from what was kept: scores and standard errors are its own.
    """

    kind = "lm_eval"
    version = "1"
    settings_class = LmEvalSettings
    block = 25

    def __init__(self, settings: LmEvalSettings, setting: Setting) -> None:
        from geosparse.integrations.lm_eval.arguments import require_lm_eval
        from geosparse.integrations.lm_eval.console import as_sentence

        super().__init__(settings, setting)
        require_lm_eval()
        with _quietly(setting), as_sentence(f"Cannot load the lm-eval task {settings.name}"):
            self._loaded, self.task = self._load()
            self.task.build_all_requests(limit=settings.samples, rank=0, world_size=1)
        self.documents: dict[int, list[Any]] = {}
        for instance in self.task.instances:
            self.documents.setdefault(instance.doc_id, []).append(instance)
        self.original, self.effective = len(self.task.eval_docs), len(self.documents)
        self.data_sha256 = _digest([[request.args for request in requests] for requests in self.documents.values()])
        self._lm: Any = None

    def _load(self) -> tuple[dict[str, Any], Any]:
        from lm_eval.tasks import TaskManager

        folder = self.setting.scratch / "tokenizer"
        self.setting.tokenizer.save_pretrained(folder)
        metadata = {"tokenizer": str(folder), "pretrained": str(folder)} | _filled(
            self.settings.metadata, self.settings.length
        )
        random.seed(SEED)
        numpy.random.seed(SEED)
        loaded = TaskManager(metadata=metadata).load([self.settings.name])
        tasks = loaded["tasks"]
        if len(tasks) != 1:
            raise GeosparseError(
                f"{self.settings.name} is {len(tasks)} tasks of lm-eval: name one, e.g. {next(iter(tasks))}."
            )
        task = next(iter(tasks.values()))
        if self.settings.num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=self.settings.num_fewshot or 0)
        task.set_fewshot_seed(seed=SEED)
        return loaded, task

    def about(self) -> dict[str, Any]:
        """With lm-eval's version of the task."""
        return super().about() | {"lm_eval_task_version": str(self.task.VERSION)}

    def lm(self) -> Any:
        """The model as lm-eval sees it."""
        if self._lm is None:
            options = {} if self.settings.max_length is None else {"max_length": self.settings.max_length}
            with _quietly(self.setting):
                self._lm = shared_prefix_class()(
                    pretrained=self.setting.model, tokenizer=self.setting.tokenizer, batch_size=1, **options
                )
        return self._lm

    def score(self, sample: int, method: Method) -> Outcome:
        requests = list(self.documents.values())[sample]
        lm, answers = self.lm(), []
        with _quietly(self.setting):
            for kind in dict.fromkeys(request.request_type for request in requests):
                of_kind = [request for request in requests if request.request_type == kind]
                replies = getattr(lm, kind)(of_kind, disable_tqdm=True)
                answers += [[kind, request.idx, answer] for request, answer in zip(of_kind, replies, strict=True)]
        return Outcome({}, answers=answers)

    def finish(self, records: Sequence[dict[str, Any]]) -> Scores:
        from lm_eval.evaluator import evaluate

        doc_ids = list(self.documents)
        kept = {(doc_ids[r["sample"]], kind, idx): answer for r in records for kind, idx, answer in r["answers"]}
        with _quietly(self.setting):
            results = evaluate(
                _replay_class()(kept), self._loaded, limit=len(records), bootstrap_iters=1000, log_samples=True
            )
        name = next(iter(results["results"]))
        columns: dict[str, Column] = {}
        metrics: dict[str, Metric] = {}
        for key, value in results["results"][name].items():
            metric, _, chosen = key.partition(",")
            if (
                not chosen
                or metric.endswith("_stderr")
                or not isinstance(value, Real)
                or (metric.isdigit() and value == -1)
            ):
                continue
            shown = metric if chosen == "none" else f"{metric} {chosen}"
            samples = [s.get(metric) for s in results["samples"][name] if s["filter"] == chosen]
            stderr = results["results"][name].get(f"{metric}_stderr,{chosen}")
            columns[shown] = _column(_numbers(samples), float(value), stderr)
            kind = _kind(metric, samples)
            better = _higher_is_better(kind, results["higher_is_better"].get(name, {}).get(metric))
            metrics[shown] = Metric(kind, better, self._chance(metric))
        main = _main_metric(metrics)
        return Scores({name: replace(metric, main=name == main) for name, metric in metrics.items()}, columns)

    def _chance(self, metric: str) -> float | None:
        """Guessing among the choices of a multiple-choice task; 0 for generated answers."""
        if self.task.OUTPUT_TYPE == "multiple_choice" and metric in ("acc", "acc_norm"):
            counts = [len({request.args for request in requests}) for requests in self.documents.values()]
            return sum(1 / count for count in counts) / len(counts)
        return 0.0 if self.task.OUTPUT_TYPE != "loglikelihood_rolling" and metric not in PERPLEXITY_METRICS else None


def _main_metric(names: Iterable[str]) -> str | None:
    """The metric that stands for a task: the first of MAIN_METRICS, a context length of RULER, or any."""
    preferred = [name for wanted in MAIN_METRICS for name in names if name.split(" ")[0] == wanted]
    return next(iter([*preferred, *(name for name in names if name.isdigit()), *names]), None)


def _column(values: list[float], value: float, stderr: Any) -> Column:
    """With lm-eval's standard error; where it has none (RULER's own means) that of the mean, if `value` is one."""
    if isinstance(stderr, Real):
        return Column(values, value, float(stderr))
    plain = Column.of(values) if values else None
    return Column(values, value, plain.stderr if plain and math.isclose(plain.value, value) else None)


def _kind(metric: str, samples: Sequence[Any]) -> str:
    if metric in PERPLEXITY_METRICS:
        return "perplexity"
    return "accuracy" if all(isinstance(value, Real) and value in (0, 1) for value in samples) else "other"


def _higher_is_better(kind: str, said: bool | None) -> bool | None:
    """What the task says; of accuracies without a word: RULER's tasks speak of some of their context lengths only."""
    return True if said is None and kind == "accuracy" else said


def _numbers(samples: Sequence[Any]) -> list[float]:
    """Per sample a number; of (log-likelihood, length) pairs the loss per unit of length; nothing for other things."""
    if all(isinstance(value, list | tuple) and len(value) == 2 and value[1] for value in samples):
        return [-float(value[0]) / float(value[1]) for value in samples]
    return [float(value) for value in samples] if all(isinstance(value, Real) for value in samples) else []


def _filled(metadata: dict[str, Any], length: int) -> dict[str, Any]:
    """Metadata with "LENGTH" replaced by the number, and "LENGTH_K" by words such as "4k"."""
    values = {"LENGTH": length, "LENGTH_K": f"{length // 1024}k"}
    return {
        key: [values.get(item, item) for item in value] if isinstance(value, list) else values.get(value, value)
        for key, value in metadata.items()
    }


def _digest(requests: Any) -> str:
    return hashlib.sha256(json.dumps(requests, default=str, sort_keys=True).encode()).hexdigest()


def _replay_class() -> Any:
    from lm_eval.api.model import LM

    class Replay(LM):  # type: ignore[misc]
        """A model that gives the answers that were kept."""

        def __init__(self, kept: dict[tuple[int, str, int], Any]) -> None:
            super().__init__()
            self.kept = kept

        def _answers(self, kind: str, requests: Sequence[Any]) -> list[Any]:
            replies = [self.kept[request.doc_id, kind, request.idx] for request in requests]
            return [tuple(answer) if isinstance(answer, list) else answer for answer in replies]

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[Any]:
            return self._answers("loglikelihood", requests)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[Any]:
            return self._answers("loglikelihood_rolling", requests)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[Any]:
            return self._answers("generate_until", requests)

    return Replay


@contextmanager
def _quietly(setting: Setting) -> Iterator[None]:
    """lm-eval's chatter off the terminal; its data sets are looked for below `--data` first."""
    from geosparse.integrations.lm_eval.console import logging_at

    logging.getLogger("datasets").setLevel(logging.ERROR)
    # Progress bars go nowhere; errors are logged to the standard error of before.
    with (
        data_below(None if setting.data is None else setting.data / "hub"),
        logging_at(logging.ERROR),
        redirect_stdout(StringIO()),
        redirect_stderr(StringIO()),
    ):
        yield

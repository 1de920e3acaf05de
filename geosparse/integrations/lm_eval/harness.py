"""Running lm-eval: tasks are found before the model is loaded, built once, and answered dense, then sparse."""

from __future__ import annotations

import difflib
import hashlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from typing import Any

import numpy
import torch

from ...artifacts.plan import Plan
from ...errors import GeosparseError
from ...hf.identity import identify
from ...measure.loss import policy_label
from ...profile.checkpoints import process_rank
from ...sparsify.patch import sparsified
from ...utils.console import say
from .arguments import PASSED, output_path, settings
from .console import as_sentence, log_level, logging_at
from .model import lm_class, overall, share_out
from .results import HarnessRun, summarize


def evaluate_both(
    config: Any, plan: Plan | None, load: Callable[[], tuple[Any, Any]], dense: bool = True
) -> dict[str, Any]:
    """Evaluate dense (if asked for) and sparse (with a plan), and compare.

    Args:
        config: From `parse_arguments`.
        plan: Checked against the model before anything runs.
        load: Gives model and tokenizer; called when all tasks are known.
        dense: Evaluate the dense model as well.
    """
    if plan is None and not dense:
        raise GeosparseError("There is nothing to evaluate: neither the dense model nor a plan was asked for.")
    requested = settings(config)
    with (
        tempfile.TemporaryDirectory(prefix="geosparse-") as folder,
        redirect_stdout(sys.stderr),
        logging_at(log_level(config)),
    ):
        tasks = _find_tasks(config, folder)
        model, tokenizer = load()
        if plan is not None:
            plan.check(model)
        tokenizer.save_pretrained(folder)
        plans = ({"dense": None} if dense else {}) | ({} if plan is None else {"sparse": plan})
        runs = {label: _evaluate(model, tokenizer, each, config, tasks) for label, each in plans.items()}
    if process_rank()[0] != 0:
        return {}
    result = summarize(runs, model, plan, requested)
    for warning in result["warnings"]:
        say(f"geosparse: warning: {warning}")
    return result


class _LoadOnce:
    """An lm-eval TaskManager that builds its tasks for the first run and hands the same ones to the second.

    Building them twice would not do: some tasks draw their documents from a random state that runs on between builds,
    so that dense and sparse would get different questions.
    """

    def __init__(self, manager: Any, names: str) -> None:
        self._manager = manager
        self._names = names
        self._loaded: Any = None
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def load(self, tasks: Any) -> Any:
        """The tasks, and the random state that building them leaves behind."""
        start = time.perf_counter()
        if self._loaded is None:
            with as_sentence(f"Cannot load {self._names}"):
                self._loaded = self._manager.load(tasks)
            self._state = random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()
        random.setstate(self._state[0])
        numpy.random.set_state(self._state[1])
        torch.random.set_rng_state(self._state[2])
        self.seconds = time.perf_counter() - start
        return self._loaded


def _find_tasks(config: Any, tokenizer_folder: str) -> _LoadOnce:
    """Resolve `config.tasks`; RULER and its like will load the tokenizer from `tokenizer_folder`."""
    requested = [name for names in config.tasks for name in names.split(",")]
    metadata = {"tokenizer": tokenizer_folder, "pretrained": tokenizer_folder} | config.metadata
    try:
        with as_sentence("lm-eval cannot find its tasks"):
            manager = config.process_tasks(metadata)
    except GeosparseError as error:
        if "Tasks not found" not in str(error):
            raise
        raise GeosparseError(_unknown_task(requested, config.include_path)) from error
    return _LoadOnce(manager, ", ".join(requested))


def _unknown_task(requested: list[str], include_path: str | None) -> str:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    name = next((name for name in requested if not manager.match_tasks([name])), requested[0])
    near = difflib.get_close_matches(name, manager.all_tasks, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists them."
    return f"lm-eval has no task {name!r}; {hint}"


def _evaluate(model: Any, tokenizer: Any, plan: Plan | None, config: Any, tasks: _LoadOnce) -> HarnessRun:
    batches = {
        "batch_size": config.batch_size,
        "max_batch_size": 64 if config.max_batch_size is None else config.max_batch_size,
    }
    with ExitStack() as stack, as_sentence("lm-eval stopped", (ValueError, AssertionError)):
        lm = lm_class()(pretrained=model, tokenizer=tokenizer, **batches, **config.model_args)
        share_out(lm)
        start = time.perf_counter()
        if plan is not None:
            plan.check(model)
            # The first requests find the model dense: they are compared with what the plan's profile saw.
            lm.plan, lm.begin = plan, lambda: stack.enter_context(sparsified(model, plan))
        results = _simple_evaluate(lm, plan, config, tasks)
    seconds = time.perf_counter() - start - tasks.seconds
    return HarnessRun(results, lm.work, {} if plan is None else overall(lm.work), seconds)


def _simple_evaluate(lm: Any, plan: Plan | None, config: Any, tasks: _LoadOnce) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    label = "dense" if plan is None else "sparse"
    tracker = EvaluationTracker(output_path=str(output_path(config, label)) if config.output_path else None)
    named = {"pretrained": identify(lm.model).name} | ({} if plan is None else {"plan": policy_label(plan)})
    seeds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    results: dict[str, Any] = simple_evaluate(
        model=lm,
        model_args=named | config.model_args,
        device=str(lm.device),
        use_cache=_cache_path(config, lm.model, plan),
        log_samples=True,
        evaluation_tracker=tracker,
        task_manager=tasks,
        **{name: getattr(config, name) for name in PASSED},
        **dict(zip(seeds, [None] * 4 if config.seed is None else config.seed, strict=True)),
        **config.cache_requests,
    )
    if lm.rank == 0:  # the others get None
        _save(results, tracker, config)
    return results


def _save(results: dict[str, Any], tracker: Any, config: Any) -> None:
    """Write lm-eval's own files, as its command line would."""
    from lm_eval.utils import handle_non_serializable

    samples = results["samples"]
    rest = {key: value for key, value in results.items() if key != "samples"}
    if config.show_config:
        print(json.dumps(rest, indent=2, default=handle_non_serializable, ensure_ascii=False))
    tracker.save_results_aggregated(results=rest, samples=samples if config.log_samples else None)
    if config.log_samples:
        for task in results["configs"]:
            # A copy: lm-eval rewrites the samples for its file.
            tracker.save_results_samples(task_name=task, samples=[dict(sample) for sample in samples[task]])


def _cache_path(config: Any, model: Any, plan: Plan | None) -> str | None:
    """A cache of answers per model, dtype and plan: lm-eval's key is the request alone."""
    if not config.use_cache:
        return None
    parts = [identify(model).fingerprint, str(model.dtype), sorted(config.model_args.items())]
    if plan is not None:
        parts.append(plan.digest())
    digest = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]
    return f"{config.use_cache}_{'dense' if plan is None else 'sparse'}_{digest}"

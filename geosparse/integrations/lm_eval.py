"""lm-evaluation-harness: the same requests dense and sparse, with the density beside the score.

Only this module imports lm_eval, and only inside functions. Flags keep the meaning that lm-eval gives them, because
they are read by lm-eval's own parser. A density covers all that ran through the model: with `--batch_size` above 1 also
the padding after the shorter rows of a log-likelihood batch, and after answers that ended before the others'.

`python -m geosparse.integrations.lm_eval run --model geosparse --model_args pretrained=...,plan=... ...` is lm-eval's
own command line with the model type `geosparse`; see `register`.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any, NoReturn

from ..artifact import check_writable, finite_or_none
from ..errors import GeosparseError, did_you_mean
from ..identity import identify
from ..models import load_model
from ..patch import sparsified, sparsify_
from ..plan import Plan
from ..provenance import device_name, versions
from ..receipt import Receipt
from ..score import density, policy_label
from ..statistics import mean_interval

SCHEMA = "geosparse.lm-eval/1"
NAME = "geosparse"
NEARLY_DENSE = 0.95

_MODEL_ARGS = (
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "logits_cache",
    "max_length",
    "mixed_precision_dtype",
    "prefix_token_id",
    "softmax_dtype",
    "think_end_token",
    "truncation",
)
_REFUSED = {
    "check_integrity": "it needs a checkout of lm-eval",
    "predict_only": "without metrics there is nothing to compare; --log_samples keeps the answers",
    "wandb_args": "nothing is uploaded; log the result file yourself",
    "wandb_config_args": "nothing is uploaded; log the result file yourself",
    "trackio_args": "nothing is uploaded; log the result file yourself",
    "hf_hub_log_args": "nothing is uploaded; --output_path keeps lm-eval's files",
}
_SETTINGS = (
    "num_fewshot",
    "limit",
    "samples",
    "batch_size",
    "apply_chat_template",
    "system_instruction",
    "fewshot_as_multiturn",
    "gen_kwargs",
    "model_args",
    "metadata",
    "seed",
)

Loader = Callable[[], tuple[Any, Any]]


def run(
    model_name: str,
    plan_path: Path | str | None,
    arguments: Sequence[str],
    *,
    dtype: str = "float32",
    device: str | None = None,
    dense: bool = True,
) -> dict[str, Any]:
    """Evaluate a model on lm-eval tasks, dense and, with a plan, sparse.

    Standard output stays free: what lm-eval prints goes to standard error, as do our warnings.

    Args:
        model_name: A folder, `.gguf` file, alias or hub id.
        plan_path: A plan for it; None for dense alone.
        arguments: lm-eval's own flags, e.g. `["--tasks", "lambada_openai", "--limit", "20"]`.
        dtype: As in `geosparse.load_model`.
        device: As in `geosparse.load_model`; by default what lm-eval's `--device` says.
        dense: Evaluate the dense model as well.

    Returns:
        A JSON object, schema `geosparse.lm-eval/1`; `table` makes text of it.

    Raises:
        GeosparseError: lm-eval is missing, a flag or task is unknown, the plan is for another model, lm-eval stopped.
    """
    config = parse_arguments(arguments)
    plan = None if plan_path is None else Plan.load(plan_path)

    def load() -> tuple[Any, Any]:
        return load_model(
            model_name, dtype=dtype, device=device or config.device, trust_remote_code=config.trust_remote_code
        )

    return _compare(config, plan, load, dense)


def compare(
    model: Any, tokenizer: Any, plan: Plan | None, arguments: Sequence[str], *, dense: bool = True
) -> dict[str, Any]:
    """`run` for a model and tokenizer that are already loaded."""
    return _compare(parse_arguments(arguments), plan, lambda: (model, tokenizer), dense)


def register() -> None:
    """Make lm-eval's `--model geosparse` known, with `--model_args pretrained=NAME,plan=FILE,dtype=float32`.

    `pretrained` is what `geosparse.load_model` takes. Tasks that load a tokenizer themselves (RULER) take it from
    `--metadata '{"tokenizer": FOLDER}'`. The density stands in the results under `config`.
    """
    lm = lm_class()
    from lm_eval.api.registry import register_model

    register_model(NAME)(lm)


def require_lm_eval() -> None:
    """Raise GeosparseError unless a fitting lm-eval is installed."""
    try:
        import lm_eval._cli.run
        import lm_eval.config.evaluate_config  # noqa: F401
    except ImportError as error:
        raise GeosparseError(
            f"lm-eval 0.4.13 or newer is needed ({_reason(error)}): pip install geosparse[lm-eval]."
        ) from error


# --- lm-eval's flags -------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise GeosparseError(f"lm-eval does not take these flags: {message}.")


def parse_arguments(arguments: Sequence[str]) -> Any:
    """lm-eval's `EvaluatorConfig` for its own flags.

    Raises:
        GeosparseError: A flag is unknown, malformed or has no meaning here, or `--tasks` is missing.
    """
    require_lm_eval()
    from lm_eval._cli.run import Run
    from lm_eval.config.evaluate_config import EvaluatorConfig

    parser = _Parser(prog="geosparse lm-eval")
    commands = parser.add_subparsers(dest="command")
    Run.create(commands)
    with _quiet(logging.ERROR), _as_sentence("lm-eval cannot read its flags"):
        options, unknown = parser.parse_known_args(["run", *arguments])
        _refuse_unknown(unknown, commands.choices["run"])
        if options.model is not None:
            raise GeosparseError("--model has no meaning here: the model is the first argument of geosparse lm-eval.")
        config = EvaluatorConfig.from_cli(options)
    if config.device == EvaluatorConfig().device and options.device is None:
        config.device = None  # lm-eval's default is a GPU, there or not
    _check_config(config)
    return config


def _refuse_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> None:
    for argument in unknown:
        if not argument.startswith("-"):
            raise GeosparseError(f"Unexpected argument {argument!r} among lm-eval's flags; every value follows a flag.")
        flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
        flag = argument.split("=")[0]
        raise GeosparseError(
            f"Unknown flag {flag!r}: neither geosparse nor lm-eval has it; {did_you_mean(flag, flags)}"
        )


def _check_config(config: Any) -> None:
    for name, why in _REFUSED.items():
        if getattr(config, name, None):
            raise GeosparseError(f"--{name} is not available in geosparse lm-eval: {why}.")
    if not config.tasks:
        raise GeosparseError("No task was given: name at least one, e.g. --tasks lambada_openai.")
    if config.limit is not None and config.limit <= 0:
        raise GeosparseError(f"--limit is a number of samples, or a part of them, above 0, found {config.limit:g}.")
    config.model_args.pop("trust_remote_code", None)
    for name in config.model_args:
        if name not in _MODEL_ARGS:
            raise GeosparseError(
                f"--model_args {name} is not available in geosparse lm-eval, which loads the model itself; "
                f"{did_you_mean(name, _MODEL_ARGS)}"
            )
    if config.include_path and not Path(config.include_path).is_dir():
        raise GeosparseError(f"--include_path {config.include_path} is not a folder.")
    if config.output_path:
        for label in ("dense", "sparse"):
            check_writable(_output_path(config, label) / "results.json")


def _reason(error: BaseException) -> str:
    """The first line of an error, as a clause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


@contextmanager
def _as_sentence(what: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    try:
        yield
    except GeosparseError:
        raise
    except kinds as error:
        raise GeosparseError(f"{what}: {_reason(error)}.") from error


# --- Quiet -----------------------------------------------------------------------------------------------------------


@contextmanager
def _quiet(level: int) -> Iterator[None]:
    """Keep standard output free, lm-eval's log at `level`, and progress bars off unless on a terminal."""
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(_logging(level))
        if not sys.stderr.isatty():
            stack.enter_context(_no_bars())
        yield


@contextmanager
def _logging(level: int) -> Iterator[None]:
    logger = logging.getLogger("lm_eval")
    before = logger.level
    handler = None if logger.handlers else logging.StreamHandler()
    if handler is not None:
        handler.setFormatter(logging.Formatter("lm-eval: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        if handler is not None:
            logger.removeHandler(handler)


@contextmanager
def _no_bars() -> Iterator[None]:
    """lm-eval, its tasks and datasets each open bars, with no common switch but the class itself."""
    from tqdm import tqdm

    original = tqdm.__init__

    def silent(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **(options | {"disable": True}))

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original


def _level(config: Any) -> int:
    name = str(config.verbosity or os.environ.get("LMEVAL_LOG_LEVEL") or "").upper()
    levels = logging.getLevelNamesMapping()
    if name and name not in levels:
        raise GeosparseError(f"Unknown log level {name!r}; {did_you_mean(name, levels)}")
    return levels[name] if name else logging.INFO if config.write_out else logging.WARNING


# --- Tasks -----------------------------------------------------------------------------------------------------------


class _LoadOnce:
    """An lm-eval TaskManager that builds its tasks for the first run and hands the same ones to the second.

    Building them twice would not do: some tasks draw their documents from a random state that runs on between builds,
    so that dense and sparse would get different questions.
    """

    def __init__(self, manager: Any, names: str) -> None:
        self._manager = manager
        self._names = names
        self._loaded: Any = None
        self._state: Any = None
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    def load(self, tasks: Any) -> Any:
        start = time.perf_counter()
        if self._loaded is None:
            with _as_sentence(f"Cannot load {self._names}"):
                self._loaded = self._manager.load(tasks)
            self._state = _random_state()
        _set_random_state(self._state)
        self.seconds = time.perf_counter() - start
        return self._loaded


def _random_state() -> tuple[Any, Any, Any]:
    import numpy
    import torch

    return random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()


def _set_random_state(state: tuple[Any, Any, Any]) -> None:
    import numpy
    import torch

    random.setstate(state[0])
    numpy.random.set_state(state[1])
    torch.random.set_rng_state(state[2])


def _find_tasks(config: Any, tokenizer_folder: str) -> _LoadOnce:
    """Resolve `config.tasks`; RULER and its like will load the tokenizer from `tokenizer_folder`."""
    asked = [name for names in config.tasks for name in names.split(",")]
    metadata = {"tokenizer": tokenizer_folder, "pretrained": tokenizer_folder} | config.metadata
    try:
        with _as_sentence("lm-eval cannot find its tasks"):
            manager = config.process_tasks(metadata)
    except GeosparseError as error:
        if "Tasks not found" not in str(error):
            raise
        raise GeosparseError(_unknown_task(asked, config.include_path)) from error
    return _LoadOnce(manager, ", ".join(asked))


def _unknown_task(asked: list[str], include_path: str | None) -> str:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=include_path)
    known = manager.all_tasks
    name = next((name for name in asked if not manager.match_tasks([name])), asked[0])
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "`lm-eval ls tasks` lists them."
    return f"lm-eval has no task {name!r}; {hint}"


# --- The model as lm-eval sees it ------------------------------------------------------------------------------------


@functools.cache
def lm_class() -> Any:
    """The lm-eval model type: an HFLM that loads through geosparse, sparsifies by a plan and counts per task."""
    require_lm_eval()
    from lm_eval.models.huggingface import HFLM

    class GeosparseLM(HFLM):  # type: ignore[misc]
        """lm-eval's HFLM around a model that is, or can become, sparse.

        Attributes:
            receipt: Where a sparse model counts; None while it is dense.
            work: Task name -> (tokens kept, tokens visible).
        """

        def __init__(
            self,
            pretrained: Any,
            plan: str | Path | None = None,
            tokenizer: Any = None,
            dtype: Any = "float32",
            device: str | None = None,
            trust_remote_code: bool = False,
            **options: Any,
        ) -> None:
            if isinstance(pretrained, str):
                place = _usable(device)
                found = load_model(pretrained, dtype=dtype, device=place, trust_remote_code=trust_remote_code)
                pretrained, tokenizer = found[0], tokenizer or found[1]
            with _logging(logging.ERROR):  # the warnings about a model object are about accelerate
                super().__init__(pretrained=pretrained, tokenizer=tokenizer, **options)
            self.work: dict[str, tuple[int, int]] = {}
            self.receipt: Receipt | None = None if plan is None else sparsify_(self.model, Plan.load(plan))

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._by_task(super().loglikelihood, requests, disable_tqdm)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._by_task(super().loglikelihood_rolling, requests, disable_tqdm)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[Any]:
            return self._by_task(super().generate_until, requests, disable_tqdm)

        def _by_task(self, answer: Callable[..., list[Any]], requests: list[Any], disable_tqdm: bool) -> list[Any]:
            """Answer one task after the other, so that what the receipt counts is one task's."""
            places: dict[str, list[int]] = {}
            for place, request in enumerate(requests):
                places.setdefault(str(request.task_name), []).append(place)
            answers: list[Any] = [None] * len(requests)
            for task, mine in places.items():
                before = _counted(self.receipt)
                for place, each in zip(mine, answer([requests[i] for i in mine], disable_tqdm), strict=True):
                    answers[place] = each
                after, old = _counted(self.receipt), self.work.get(task, (0, 0))
                self.work[task] = (old[0] + after[0] - before[0], old[1] + after[1] - before[1])
            return answers

        def _detect_batch_size(self, *arguments: Any, **options: Any) -> Any:
            """Not counted: these are trial calls on made-up tokens."""
            with _not_counted(self.receipt):
                return super()._detect_batch_size(*arguments, **options)

        def get_model_info(self) -> dict[str, Any]:
            """lm-eval's record of the model, with the density so far."""
            info: dict[str, Any] = super().get_model_info()
            return info if self.receipt is None else info | density(self.receipt)

    return GeosparseLM


def _usable(device: str | None) -> str | None:
    """As HFLM does: lm-eval always asks for a GPU, which falls back to the CPU where there is none."""
    import torch

    return None if device is not None and device.startswith("cuda") and not torch.cuda.is_available() else device


def _counted(receipt: Receipt | None) -> tuple[int, int]:
    return (0, 0) if receipt is None else (int(receipt.kept.sum()), int(receipt.visible.sum()))


@contextmanager
def _not_counted(receipt: Receipt | None) -> Iterator[None]:
    names = ("queries", "visible", "kept", "planned")
    before = {} if receipt is None else {name: getattr(receipt, name).clone() for name in names}
    try:
        yield
    finally:
        for name, counts in before.items():
            setattr(receipt, name, counts)


# --- Running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """One evaluation: lm-eval's results, and what the receipt says of it."""

    results: dict[str, Any]
    work: dict[str, tuple[int, int]]
    density: dict[str, float | None]
    seconds: float  # without building the tasks


def _compare(config: Any, plan: Plan | None, load: Loader, dense: bool) -> dict[str, Any]:
    if plan is None and not dense:
        raise GeosparseError("There is nothing to evaluate: neither the dense model nor a plan was asked for.")
    asked = {name: getattr(config, name, None) for name in _SETTINGS}
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as lm-eval does: its bootstrap forks
    with tempfile.TemporaryDirectory(prefix="geosparse-") as folder, _quiet(_level(config)):
        manager = _find_tasks(config, folder)
        model, tokenizer = load()
        if plan is not None:
            plan.check(model)
        tokenizer.save_pretrained(folder)
        runs = {}
        if dense:
            runs["dense"] = _evaluate(model, tokenizer, None, config, manager)
        if plan is not None:
            runs["sparse"] = _evaluate(model, tokenizer, plan, config, manager)
    result = _result(runs, model, plan, asked)
    for warning in result["warnings"]:
        print(f"geosparse: warning: {warning}", file=sys.stderr)
    return result


def _evaluate(model: Any, tokenizer: Any, plan: Plan | None, config: Any, manager: _LoadOnce) -> _Run:
    batches = {"batch_size": config.batch_size, "max_batch_size": config.max_batch_size or 64}
    with _as_sentence("lm-eval stopped", (ValueError, AssertionError)):
        lm = lm_class()(pretrained=model, tokenizer=tokenizer, **batches, **config.model_args)
        start = time.perf_counter()
        if plan is None:
            results = _simple_evaluate(lm, None, config, manager)
        else:
            with sparsified(model, plan) as lm.receipt:
                results = _simple_evaluate(lm, plan, config, manager)
    seconds = time.perf_counter() - start - manager.seconds
    return _Run(results, lm.work, {} if lm.receipt is None else density(lm.receipt), seconds)


def _simple_evaluate(lm: Any, plan: Plan | None, config: Any, manager: _LoadOnce) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker

    label = "dense" if plan is None else "sparse"
    output = str(_output_path(config, label)) if config.output_path else None
    tracker = EvaluationTracker(output_path=output)
    named = {"pretrained": identify(lm.model).name} | ({} if plan is None else {"plan": policy_label(plan)})
    python, numpy, torch, fewshot = config.seed or [None] * 4
    results: dict[str, Any] = simple_evaluate(
        model=lm,
        model_args=named | config.model_args,
        tasks=config.tasks,
        num_fewshot=config.num_fewshot,
        batch_size=config.batch_size,
        max_batch_size=config.max_batch_size,
        device=str(lm.device),
        use_cache=_cache_path(config, lm.model, plan),
        **{name: config.cache_requests.get(name, False) for name in _CACHE_REQUESTS},
        limit=config.limit,
        samples=config.samples,
        write_out=config.write_out,
        log_samples=True,
        evaluation_tracker=tracker,
        system_instruction=config.system_instruction,
        apply_chat_template=config.apply_chat_template,
        fewshot_as_multiturn=config.fewshot_as_multiturn,
        gen_kwargs=config.gen_kwargs,
        task_manager=manager,
        random_seed=python,
        numpy_random_seed=numpy,
        torch_random_seed=torch,
        fewshot_random_seed=fewshot,
        confirm_run_unsafe_code=config.confirm_run_unsafe_code,
    )
    _save(results, tracker, config)
    return results


_CACHE_REQUESTS = ("cache_requests", "rewrite_requests_cache", "delete_requests_cache")


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


def _output_path(config: Any, label: str) -> Path:
    """Where lm-eval's files of one run go: folders `dense` and `sparse` under, or beside, `--output_path`."""
    path = Path(config.output_path)
    return path.parent / label / path.name if path.suffix == ".json" else path / label


def _cache_path(config: Any, model: Any, plan: Plan | None) -> str | None:
    """A cache of answers per model, dtype and plan: lm-eval's key is the request alone."""
    if not config.use_cache:
        return None
    parts = [identify(model).fingerprint, str(model.dtype), sorted(config.model_args.items())]
    if plan is not None:
        parts += [plan.tail, plan.n_keep.tolist()]
    digest = hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]
    return f"{config.use_cache}_{'dense' if plan is None else 'sparse'}_{digest}"


# --- The result ------------------------------------------------------------------------------------------------------


def _result(runs: dict[str, _Run], model: Any, plan: Plan | None, asked: dict[str, Any]) -> dict[str, Any]:
    rows = _rows(runs)
    sparse = runs.get("sparse")
    return {
        "schema": SCHEMA,
        "model": identify(model).to_json(),
        "plan": plan and {"policy": plan.policy, "tail": plan.tail, "mean_keep": plan.mean_keep},
        "tasks": rows,
        "density": sparse and sparse.density["density"],
        "mean_kept": sparse and sparse.density["mean_kept"],
        "warnings": _warnings(rows, sparse),
        "seconds": {label: each.seconds for label, each in runs.items()},
        "settings": json.loads(json.dumps({key: value for key, value in asked.items() if value}, default=str)),
        "versions": {task: str(version) for task, version in next(iter(runs.values())).results["versions"].items()},
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": device_name(model.device),
        "provenance": versions(),
    }


def _rows(runs: dict[str, _Run]) -> list[dict[str, Any]]:
    rows = []
    for task, metrics in next(iter(runs.values())).results["results"].items():
        for key in metrics:
            metric, _, chosen = key.partition(",")
            if chosen and not metric.endswith("_stderr"):
                rows.append(_row(runs, task, metric, chosen))
    return [row for row in rows if not _is_absent(row)]


def _row(runs: dict[str, _Run], task: str, metric: str, chosen: str) -> dict[str, Any]:
    first = next(iter(runs.values())).results
    row: dict[str, Any] = {"task": task, "metric": metric, "filter": chosen}
    for label in ("dense", "sparse"):
        metrics = runs[label].results["results"][task] if label in runs else {}
        row[label] = _number(metrics.get(f"{metric},{chosen}"))
        row[f"{label}_stderr"] = _number(metrics.get(f"{metric}_stderr,{chosen}"))
    row["higher_is_better"] = first["higher_is_better"].get(task, {}).get(metric)
    row["difference"] = None if row["dense"] is None or row["sparse"] is None else row["sparse"] - row["dense"]
    row |= _paired(runs, row)
    row["density"] = _task_density(runs, task)
    row["samples"] = _documents(first, row)
    return row


def _number(value: Any) -> float | None:
    return finite_or_none(float(value)) if isinstance(value, Real) else None


def _is_absent(row: dict[str, Any]) -> bool:
    """RULER's metrics are context lengths, and -1 stands for a length that was not asked for."""
    return bool(row["metric"].isdigit() and {row["dense"], row["sparse"]} <= {-1.0, None})


def _task_density(runs: dict[str, _Run], task: str) -> float | None:
    kept, visible = runs["sparse"].work.get(task, (0, 0)) if "sparse" in runs else (0, 0)
    return kept / visible if visible else None


def _paired(runs: dict[str, _Run], row: dict[str, Any]) -> dict[str, Any]:
    """How many documents' scores changed, and the interval of the paired difference where the score is their mean."""
    nothing: dict[str, Any] = {"changed": None, "difference_interval": None}
    if row["difference"] is None:
        return nothing
    dense, sparse = (_per_document(runs[label].results, row) for label in ("dense", "sparse"))
    if not dense or dense.keys() != sparse.keys():
        return nothing
    differences = [sparse[document] - dense[document] for document in dense]
    changed = sum(difference != 0 for difference in differences)
    is_mean = all(
        abs(fmean(scores.values()) - row[label]) < 1e-9 for label, scores in (("dense", dense), ("sparse", sparse))
    )
    # Without a single change there is no spread to take an interval from, which is not certainty.
    interval = mean_interval(differences) if is_mean and changed else None
    return {"changed": changed, "difference_interval": interval and list(interval)}


def _documents(results: dict[str, Any], row: dict[str, Any]) -> int | None:
    """How many documents a score is of: with several context lengths, RULER has fewer per length than in all."""
    count: int | None = results["n-samples"].get(row["task"], {}).get("effective")
    return len(_per_document(results, row)) or count


def _per_document(results: dict[str, Any], row: dict[str, Any]) -> dict[Any, float]:
    found = {}
    for sample in results["samples"].get(row["task"], ()):
        value = _number(sample.get(row["metric"]))
        if sample["filter"] == row["filter"] and value is not None:
            found[sample["doc_id"]] = value
    return {key: value for key, value in found.items() if not (row["metric"].isdigit() and value == -1.0)}


def _warnings(rows: list[dict[str, Any]], sparse: _Run | None) -> list[str]:
    found: dict[str, None] = {}
    for row in rows if sparse else ():
        task = row["task"]
        if row["density"] is not None and row["density"] >= NEARLY_DENSE:
            found[
                f"{task}: the density is {row['density']:.2f}, the budgets cover nearly all of these contexts, so the "
                "run shows nothing about the plan; take longer contexts or a smaller plan."
            ] = None
        if row["dense"] == 0 and row["higher_is_better"]:
            found[f"{task}: the dense model scores 0 in {row['metric']}, so sparsity has nothing to lose there."] = None
    if sparse and sparse.density["density"] is None:
        found["Every sparse answer came from the cache of --use_cache: nothing was computed, no density known."] = None
    return list(found)


# --- The table -------------------------------------------------------------------------------------------------------

_COLUMNS = ("task", "metric", "samples", "dense", "sparse", "difference", "95 % interval", "changed", "density %")


def table(result: dict[str, Any]) -> str:
    """A result of `run` as aligned text for the terminal."""
    lines = [_COLUMNS, *map(_cells, result["tasks"])]
    if result["plan"] is None:
        lines = [line[:4] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(map(_align, range(len(widths)), line, widths)) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([_headline(result), "", *(line.rstrip() for line in text)])


def _align(column: int, cell: str, width: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    metric = row["metric"] if row["filter"] == "none" else f"{row['metric']} ({row['filter']})"
    interval = row["difference_interval"]
    return (
        row["task"],
        metric,
        _shown(row["samples"], "d"),
        _shown(row["dense"]) + _stderr(row["dense_stderr"]),
        _shown(row["sparse"]) + _stderr(row["sparse_stderr"]),
        _shown(row["difference"], "+.4f"),
        f"[{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else "-",
        _shown(row["changed"], "d"),
        "-" if row["density"] is None else f"{100 * row['density']:.2f}",
    )


def _shown(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def _stderr(value: float | None) -> str:
    return "" if value is None else f" ±{value:.4f}"


def _headline(result: dict[str, Any]) -> str:
    parts = [f"{result['model']['name']} ({result['dtype']}, {result['device']})"]
    if plan := result["plan"]:
        parts.append(f"{plan['policy']}/{plan['tail']}, {plan['mean_keep']:g} tokens kept per head")
        if result["density"] is not None:
            parts.append(f"density {100 * result['density']:.2f} %, {result['mean_kept']:.1f} tokens kept per query")
    parts.append(", ".join(f"{label} {seconds:.0f} s" for label, seconds in result["seconds"].items()))
    return "; ".join(parts)


def _main() -> None:
    register()
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    _main()

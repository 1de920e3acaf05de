"""One run of a recipe: profile, plans, samples, result."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from geosparse.artifacts.profile import Profile
from geosparse.errors import GeosparseError, did_you_mean
from geosparse.hf.identity import identify
from geosparse.hf.loading import load_model
from geosparse.profile.profiler import ProfileConfig, config_json, profile_to_file
from geosparse.text import load_texts, text_sha256
from geosparse.utils.files import dump_json, write_atomic, write_json
from geosparse.utils.provenance import device_name, processor, versions

from .check import Check, committed_plans, compare
from .checkout import commit
from .handover import Plans, park, unpark
from .methods import DENSE, Method
from .planner import Baseline, Planner
from .recipe import Recipe, load_recipe
from .result import (
    TIMING_SCHEMA,
    Result,
    RunInfo,
    TaskInfo,
    TaskScores,
    VariantInfo,
    measurements_of,
    read_result,
    summarize,
    write_result,
    write_samples,
)
from .samples import Part, alone
from .task import Setting, Task
from .task_runner import TaskRunner


@dataclass(frozen=True)
class SessionOptions:
    """What a session is asked for: the flags of `python -m eval.run`.

    Attributes:
        recipe: A file, or its name below recipes/ without the ending.
        results: Folder that results go to.
        data: Folder of the texts named `data:FILE`; None: there is none.
        limit: Samples per task, at most; None: all.
        only: Ids of the tasks to score; empty: all.
        variants: Ids of the variants to score; empty: all.
        park: Score nothing, and write plans and samples for another machine.
        check: Samples per task to score anew and compare; None: no check.
        model: Another model than the recipe's.
    """

    recipe: str
    results: Path
    data: Path | None = None
    limit: int | None = None
    only: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    park: bool = False
    check: int | None = None
    model: str | None = None

    def __post_init__(self) -> None:
        """Flags that go together, and numbers from 1."""
        for flag, number in {"--limit": self.limit, "--check": self.check}.items():
            if number is not None and number < 1:
                raise GeosparseError(f"{flag} is a number of samples from 1, found {number}.")
        if self.check is not None and (self.limit or self.model or self.park):
            raise GeosparseError("--check repeats a result as it is: leave out --limit, --model and --park.")


class Session:
    """A recipe, where its samples are kept, and where its result goes."""

    def __init__(self, options: SessionOptions, kinds: Mapping[str, type[Task]], baseline: Baseline) -> None:
        """Read the recipe.

        Args:
            options: What is asked for.
            kinds: The tasks that a recipe may name.
            baseline: Makes the method of a variant that is no plan.
        """
        self.options = options
        self.kinds = kinds
        self.baseline = baseline
        recipe = load_recipe(options.recipe, kinds)
        self.recipe: Recipe = recipe if options.model is None else dataclasses.replace(recipe, model=options.model)
        self.commit, self.clean = commit()
        self.scratch = options.results / "_scratch" / self.recipe.name
        if options.check is not None:
            self.scratch = self.scratch / "check"  # samples of another run prove nothing
        official = self.clean and options.limit is None and options.model is None
        self.folder = options.results / self.recipe.name if official else self.scratch / "result"
        self.data: Path | None = None if options.data is None else options.data.resolve()

    def run(self) -> tuple[Result | None, str]:
        """Score what is missing; returns the result, once it is whole and written, and a sentence on what was done."""
        with alone(self.scratch):
            started = time.perf_counter()
            tasks, variants = self._chosen()
            plans = unpark(self._unfinished, self.scratch / "parts", self._decides_plans())
            runners, planner, model = self._prepare(plans, self.options.limit)
            for runner in runners:
                if not self.options.park and (not tasks or runner.task.id in tasks):
                    runner.run(show, variants)
            left = sum(runner.missing() for runner in runners)
            if self.options.park:
                files = park(self._unfinished, self.scratch / "parts", planner.plans, self._decides_plans())
                return None, f"Wrote {len(planner.plans)} plans and {files} files of samples to {self._unfinished}."
            if left:
                return None, (
                    f"{left} samples are still to be scored: give the same command without --only and --variants."
                )
            scores = [runner.scores() for runner in runners]
            result = self._result(scores, runners, planner, model)
            self._write(result, scores, runners, planner)
            if self.folder == self._unfinished.parent:
                shutil.rmtree(self._unfinished, ignore_errors=True)
            seconds = time.perf_counter() - started
        return result, f"Wrote {self.folder} ({seconds:.0f} s)."

    def check(self) -> tuple[Check, Path]:
        """Score the first samples anew by the committed plans, and compare; the second is the committed result."""
        folder = self.options.results / self.recipe.name
        with alone(self.scratch):
            tasks, variants = self._chosen()
            runners, _, _ = self._prepare(committed_plans(folder, self.recipe), self.options.check)
            runners = [runner.of(variants) for runner in runners if not tasks or runner.task.id in tasks]
            for runner in runners:
                runner.run(show)
            check = compare(folder, runners, versions())
            shutil.rmtree(self.scratch / "parts")
        return check, folder

    def _chosen(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tasks and variants that `--only` and `--variants` name."""
        known = [DENSE, *(variant.id for variant in self.recipe.variants)]
        tasks = _chosen("--only", self.options.only, [task.id for task in self.recipe.tasks])
        return tasks, _chosen("--variants", self.options.variants, known)

    def _prepare(self, plans: Plans, limit: int | None) -> tuple[list[TaskRunner], Planner, Any]:
        recipe = self.recipe
        model, tokenizer = load_model(recipe.model, dtype=recipe.dtype)
        shrinking = any(variant.peer for variant in recipe.variants)
        setting = Setting(model, tokenizer, self.data, self.scratch, shrinking)
        for plan in plans.values():
            plan.check(model)
        planner = Planner(lambda: self._profile(model, tokenizer, setting), plans, self.baseline)
        about = {
            "model": identify(model).to_json(),
            "dtype": recipe.dtype,
            "versions": {key: value for key, value in versions().items() if key != "geosparse"},
        }
        runners = []
        for settings in recipe.tasks:
            task = self.kinds[settings.kind](settings, setting)
            methods = [Method(), *(planner.method(variant, settings.length) for variant in recipe.variants)]
            if task.applies:  # methods that shrink the cache act after the prompt: only tasks that decode show them
                methods = [method for method in methods if not method.shrinks]
            samples = task.effective if limit is None else min(task.effective, limit)
            task.effective = samples
            parts = {method.id: self._part(task, method, about) for method in methods}
            runners.append(TaskRunner(task, methods, parts, samples))
        return runners, planner, model

    def _part(self, task: Task, method: Method, about: dict[str, Any]) -> Part:
        path = self.scratch / "parts" / task.id / f"{method.id}.jsonl"
        return Part(
            path,
            about | task.about() | {"variant": method.about()},
            self.commit if self.clean else f"{self.commit} with changes",
        )

    @property
    def _unfinished(self) -> Path:
        return self.options.results / self.recipe.name / "unfinished"

    def _decides_plans(self) -> dict[str, Any]:
        recipe = self.recipe
        return {"model": recipe.model, "dtype": recipe.dtype, "profile": _plain(dataclasses.asdict(recipe.profile))}

    def _profile(self, model: Any, tokenizer: Any, setting: Setting) -> Profile:
        """The recipe's profile, shared by all recipes that ask for the same one, resumed where it was stopped."""
        settings = self.recipe.profile
        texts = load_texts(setting.text(settings.text))
        config = ProfileConfig(
            lengths=settings.lengths, windows=settings.windows, selectors=settings.selectors, kinds=()
        )
        what = {"model": identify(model).to_json(), "text": text_sha256(texts), "config": config_json(config)}
        key = hashlib.sha256(dump_json(what | {"dtype": self.recipe.dtype}).encode()).hexdigest()[:16]
        path = self.options.results / "_scratch" / "profiles" / f"{key}.safetensors"
        if path.exists():
            profile = Profile.load(path)
            profile.check(model)
            return profile
        shortest, *longer = settings.lengths
        show(f"profile: {settings.windows} windows of {shortest} tokens and as many of {longer}")
        return profile_to_file(path, model, tokenizer, texts, config, show_progress=True)

    def _result(self, scores: list[TaskScores], runners: list[TaskRunner], planner: Planner, model: Any) -> Result:
        recipe, rows = self.recipe, []
        for each, runner in zip(scores, runners, strict=True):
            rows += measurements_of(each, runner.densities())
        summary, warnings = summarize(scores, rows)
        commits = sorted({note for runner in runners for part in runner.parts.values() for note in part.notes if note})
        provenance = {
            "versions": versions(),
            "device": device_name(model.device),
            "processor": processor(),
            "commits": commits,
            "calibration": next((plan.calibration for plan in planner.plans.values()), {}),
            "threads": torch.get_num_threads(),
        }
        run = RunInfo(
            recipe.name, recipe.title, recipe.sha256, self.options.limit, identify(model).to_json(), recipe.dtype
        )
        variants = [
            VariantInfo(DENSE, None, None, None, None, None, None, {}),
            *(_variant(variant, planner) for variant in recipe.variants),
        ]
        return Result(run, variants, [_info(each) for each in scores], rows, summary, warnings, provenance)

    def _write(self, result: Result, scores: list[TaskScores], runners: list[TaskRunner], planner: Planner) -> None:
        import yaml

        folder = self.folder
        resolved = yaml.safe_dump(_plain(self.recipe.to_json()), sort_keys=False, allow_unicode=True, width=120)
        write_atomic(folder / "recipe.yaml", lambda temporary: temporary.write_text(resolved, encoding="utf-8"))
        for (variant, length), plan in planner.plans.items():
            path = folder / "plans" / f"{variant}-at-{length}.json"
            if not path.exists() or path.read_text(encoding="utf-8") != dump_json(plan.to_json()):
                plan.save(path)
        known = {f"{variant}-at-{length}" for variant, length in planner.plans}
        for path in (folder / "plans").glob("*.json"):
            if path.stem not in known:  # of variants that the recipe had before
                path.unlink()
        write_samples(folder / "samples.jsonl", scores)
        rows = [row for runner in runners for row in runner.timing()]
        timing = {"schema": TIMING_SCHEMA, "device": device_name(), "rows": rows}
        write_json(folder / "timing.json", timing)
        write_result(folder, result)
        read_result(folder / "result.json")


def show(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def _chosen(flag: str, names: tuple[str, ...], known: list[str]) -> tuple[str, ...]:
    """The names that a flag gives, each of which must be known."""
    for name in names:
        if name not in known:
            raise GeosparseError(f"{flag}: the recipe has no {name!r}; {did_you_mean(name, known)}")
    return names


def _info(scores: TaskScores) -> TaskInfo:
    task = scores.task
    return TaskInfo(
        id=task.id,
        task=task.kind,
        version=task.version,
        sha256=task.sha256(),
        data_sha256=task.data_sha256,
        length=task.settings.length,
        samples_original=task.original,
        samples_effective=task.effective,
        metrics={name: dataclasses.asdict(metric) for name, metric in scores.metrics.items()},
    )


def _variant(variant: Any, planner: Planner) -> VariantInfo:
    plans = {str(length): plan.digest() for (id, length), plan in planner.plans.items() if id == variant.id}
    ours = variant.peer is None
    return VariantInfo(
        variant.id,
        variant.policy if ours else None,
        variant.tail if ours else None,
        variant.selector if ours else None,
        variant.mean_keep,
        variant.density,
        variant.peer,
        plans,
    )


def _plain(data: Any) -> Any:
    """Tuples as lists, so that YAML needs no tags."""
    if isinstance(data, dict):
        return {key: _plain(value) for key, value in data.items()}
    return [_plain(item) for item in data] if isinstance(data, list | tuple) else data

"""One run of a recipe: profile, plans, samples, result."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from geosparse.artifact import dump_json, write_atomic, write_json
from geosparse.errors import GeosparseError, did_you_mean
from geosparse.identity import identify
from geosparse.models import load_model
from geosparse.profile import Profile
from geosparse.profiler import ProfileConfig, config_json, profile_to_file
from geosparse.provenance import device_name, processor, versions
from geosparse.text import load_texts, text_sha256

from .check import committed_plans, compare
from .measure import Bench
from .methods import DENSE, Method, Planner
from .parked import Plans, park, unpark
from .recipe import Recipe, load_recipe
from .results import (
    TIMING_SCHEMA,
    Result,
    Run,
    TaskInfo,
    VariantInfo,
    measurements_of,
    read_result,
    summarize,
    write_result,
    write_samples,
)
from .run import commit, show
from .store import Part, alone
from .tasks import TASKS, Setting, Task


class Session:
    """A recipe, where its samples are kept, and where its result goes."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Args: the options of `python -m eval.run`."""
        for flag, number in {"--limit": options.limit, "--check": options.check}.items():
            if number is not None and number < 1:
                raise GeosparseError(f"{flag} is a number of samples from 1, found {number}.")
        if options.check is not None and (options.limit is not None or options.model is not None or options.park):
            raise GeosparseError("--check repeats a result as it is: leave out --limit, --model and --park.")
        self.options = options
        recipe = load_recipe(options.recipe)
        self.recipe: Recipe = recipe if options.model is None else dataclasses.replace(recipe, model=options.model)
        self.commit, self.clean = commit()
        self.scratch = options.results / "_scratch" / self.recipe.name
        if options.check is not None:
            self.scratch = self.scratch / "check"  # samples of another run prove nothing
        official = self.clean and options.limit is None and options.model is None
        self.folder = options.results / self.recipe.name if official else self.scratch / "result"
        data = None if options.data is None else options.data.resolve()
        self.data: Path | None = data

    @property
    def elsewhere(self) -> bool:
        """Whether the recipe wants another environment than this one."""
        from .peers.environment import inside

        return self.recipe.environment == "peers" and not inside()

    def run_elsewhere(self) -> int:
        """Build that environment where it is missing, and run the same command there."""
        from .peers.environment import run_inside

        return run_inside(["-m", "eval.run", *sys.argv[1:]])

    def run(self) -> str:
        """Score what is missing, write the result, and say where it is."""
        with alone(self.scratch):
            started = time.perf_counter()
            tasks, variants = self._chosen()
            plans = unpark(self._unfinished, self.scratch / "parts", self._decides_plans())
            benches, planner, model = self._prepare(plans, self.options.limit)
            for bench in benches:
                if not self.options.park and (not tasks or bench.task.id in tasks):
                    bench.run(show, variants)
            left = sum(bench.missing() for bench in benches)
            if self.options.park:
                found = park(self._unfinished, self.scratch / "parts", planner.plans, self._decides_plans())
                return f"Wrote {len(planner.plans)} plans and {found} files of samples to {self._unfinished}."
            if left:
                return f"{left} samples are still to be scored: give the same command without --only and --variants."
            result = self._result(benches, planner, model)
            self._write(result, benches, planner)
            if self.folder == self._unfinished.parent:
                shutil.rmtree(self._unfinished, ignore_errors=True)
            seconds = time.perf_counter() - started
        from .report.text import table

        if self.options.json:
            return dump_json(result.to_json())
        return f"{table(result)}\n\nWrote {self.folder} ({seconds:.0f} s)."

    def check(self) -> tuple[str, bool]:
        """Score the first samples anew by the committed plans; returns what to print, and whether they are the same."""
        folder = Path(self.options.results) / self.recipe.name
        with alone(self.scratch):
            tasks, variants = self._chosen()
            benches, _, _ = self._prepare(committed_plans(folder, self.recipe), self.options.check)
            benches = [bench.of(variants) for bench in benches if not tasks or bench.task.id in tasks]
            for bench in benches:
                bench.run(show)
            found = compare(folder, benches, versions())
            shutil.rmtree(self.scratch / "parts")
        return dump_json(found.to_json()) if self.options.json else found.text(folder), found.same

    def _chosen(self) -> tuple[list[str], list[str]]:
        """The tasks and variants that `--only` and `--variants` name."""
        known = [DENSE, *(variant.id for variant in self.recipe.variants)]
        tasks = _chosen("--only", self.options.only, [task.id for task in self.recipe.tasks])
        return tasks, _chosen("--variants", self.options.variants, known)

    def _prepare(self, plans: Plans, limit: int | None) -> tuple[list[Bench], Planner, Any]:
        recipe = self.recipe
        model, tokenizer = load_model(recipe.model, dtype=recipe.dtype)
        shrinking = any(variant.peer for variant in recipe.variants)
        setting = Setting(model, tokenizer, self.data, self.scratch, shrinking)
        for plan in plans.values():
            plan.check(model)
        planner = Planner(lambda: self._profile(model, tokenizer, setting), plans)
        about = {
            "model": identify(model).to_json(),
            "dtype": recipe.dtype,
            "versions": {key: value for key, value in versions().items() if key != "geosparse"},
        }
        benches = []
        for asked in recipe.tasks:
            task = TASKS[asked.kind](asked, setting)
            methods = [Method(), *(planner.method(variant, asked.length) for variant in recipe.variants)]
            if task.applies:  # methods that shrink the cache act after the prompt: only tasks that decode show them
                methods = [method for method in methods if not method.shrinks]
            samples = task.effective if limit is None else min(task.effective, limit)
            task.effective = samples
            parts = {method.id: self._part(task, method, about) for method in methods}
            benches.append(Bench(task, methods, parts, samples))
        return benches, planner, model

    def _part(self, task: Task, method: Method, about: dict[str, Any]) -> Part:
        path = self.scratch / "parts" / task.id / f"{method.id}.jsonl"
        return Part(
            path,
            about | task.about() | {"variant": method.about()},
            self.commit if self.clean else f"{self.commit} with changes",
        )

    @property
    def _unfinished(self) -> Path:
        return Path(self.options.results) / self.recipe.name / "unfinished"

    def _decides_plans(self) -> dict[str, Any]:
        recipe = self.recipe
        return {"model": recipe.model, "dtype": recipe.dtype, "profile": _plain(dataclasses.asdict(recipe.profile))}

    def _profile(self, model: Any, tokenizer: Any, setting: Setting) -> Profile:
        """The recipe's profile, shared by all recipes that ask for the same one, resumed where it was stopped."""
        asked = self.recipe.profile
        texts = load_texts(setting.text(asked.text))
        config = ProfileConfig(lengths=asked.lengths, windows=asked.windows, selectors=asked.selectors)
        what = {"model": identify(model).to_json(), "text": text_sha256(texts), "config": config_json(config)}
        key = hashlib.sha256(dump_json(what | {"dtype": self.recipe.dtype}).encode()).hexdigest()[:16]
        path = self.options.results / "_scratch" / "profiles" / f"{key}.safetensors"
        if path.exists():
            profile = Profile.load(path)
            profile.check(model)
            return profile
        show(f"profile: {asked.windows} windows of {asked.lengths[0]} tokens and as many of {list(asked.lengths[1:])}")
        return profile_to_file(path, model, tokenizer, texts, config, show_progress=True)

    def _result(self, benches: list[Bench], planner: Planner, model: Any) -> Result:
        recipe, rows, infos = self.recipe, [], []
        self.columns = {}
        for bench in benches:
            task = bench.task
            self.columns[task.id] = bench.columns()
            rows += measurements_of(task, self.columns[task.id], bench.densities())
            infos.append(_info(task))
        summary, warnings = summarize([bench.task for bench in benches], rows)
        commits = sorted({note for bench in benches for part in bench.parts.values() for note in part.notes if note})
        provenance = {
            "versions": versions(),
            "device": device_name(model.device),
            "processor": processor(),
            "commits": commits,
            "calibration": next((plan.calibration for plan in planner.plans.values()), {}),
            "threads": torch.get_num_threads(),
        }
        run = Run(recipe.name, recipe.title, recipe.sha256, self.options.limit, identify(model).to_json(), recipe.dtype)
        variants = [
            VariantInfo(DENSE, None, None, None, None, None, None, {}),
            *(_variant(variant, planner) for variant in recipe.variants),
        ]
        return Result(run, variants, infos, rows, summary, warnings, provenance)

    def _write(self, result: Result, benches: list[Bench], planner: Planner) -> None:
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
        write_samples(folder / "samples.jsonl", self.columns)
        rows = [row for bench in benches for row in bench.timing()]
        timing = {"schema": TIMING_SCHEMA, "device": device_name(), "rows": rows}
        write_json(folder / "timing.json", timing)
        write_result(folder, result)
        read_result(folder / "result.json")
        from .report.page import write_page

        write_page(folder / "report.html", [folder])


def _chosen(flag: str, given: str | None, known: list[str]) -> list[str]:
    """The names that a flag gives, each of which must be known."""
    names = given.split(",") if given else []
    for name in names:
        if name not in known:
            raise GeosparseError(f"{flag}: the recipe has no {name!r}; {did_you_mean(name, known)}")
    return names


def _info(task: Task) -> TaskInfo:
    return TaskInfo(
        id=task.id,
        task=task.kind,
        version=task.version,
        sha256=task.sha256(),
        data_sha256=task.data_sha256,
        length=task.asked.length,
        samples_original=task.original,
        samples_effective=task.effective,
        metrics={name: dataclasses.asdict(metric) for name, metric in task.metrics.items()},
    )


def _variant(variant: Any, planner: Planner) -> VariantInfo:
    plans = {
        str(length): hashlib.sha256(dump_json(Method("", plan).about()).encode()).hexdigest()
        for (id, length), plan in planner.plans.items()
        if id == variant.id
    }
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

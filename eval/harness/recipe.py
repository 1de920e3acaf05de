"""Recipes: one YAML file says what is measured; `recipes/base.yaml` holds every default.

A recipe holds only its differences. In `variants` and `tasks`, a list stands for one entry per element, so that
`{policy: [fisher, uniform], mean_keep: [16, 32]}` is four variants.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from geosparse.errors import GeosparseError, did_you_mean
from geosparse.utils.bounds import check_number, check_whole
from geosparse.utils.files import MAX_COUNT, check_readable, dump_json, os_errors_as

from .checkout import ROOT
from .task import Task
from .unique_yaml import parse_yaml

RECIPES = ROOT / "recipes"
BASE = RECIPES / "base.yaml"
MAX_RECIPE = 1 << 20
# Whole numbers of which none is a setting, too; all others count from 1.
FROM_ZERO = frozenset({"seed", "timed", "num_fewshot"})
MAX_ENTRIES = 10_000
"""Variants or tasks that the lists of one entry may stand for."""


@dataclass(frozen=True)
class ProfileSettings:
    """How the model is profiled: the text, window lengths, and windows of the shortest length."""

    text: str
    lengths: tuple[int, ...]
    windows: int
    selectors: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One way to run the model beside the dense one: a plan, or a peer method.

    Attributes:
        policy, tail, selector, seed: As `make_plan` takes them.
        mean_keep: Tokens kept per head; null where `density` is given.
        density: The same as a fraction of each task's context.
        length: Context to plan for; null: each task's given.
        peer: A method of `eval.baselines` instead of a plan; it keeps `density` of the context.
    """

    policy: str
    tail: str
    selector: str | None
    seed: int
    mean_keep: float | None
    density: float | None
    length: int | None
    peer: str | None

    def __post_init__(self) -> None:
        """Exactly one budget."""
        if (self.mean_keep is None) == (self.density is None):
            raise GeosparseError(f"A variant gives either mean_keep or density, found {_given(self)}.")
        if self.peer is not None and self.density is None:
            raise GeosparseError(f"A peer keeps a density of the context, found {_given(self)}.")

    @property
    def id(self) -> str:
        """A name for tables and files, the same for the same variant."""
        amount = f"{self.mean_keep:g}" if self.density is None else f"{100 * self.density:g}pct"
        words = [self.peer] if self.peer else [self.policy, self.tail]
        extra = [self.selector] if self.selector else []
        extra += [f"seed{self.seed}"] if self.seed else []
        extra += [f"at{self.length}"] if self.length else []
        return "-".join([*words, amount, *extra])


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: nothing left to default.

    Attributes:
        name: Path below `recipes/` without the ending; decides where the result goes.
        title: What it is, in a sentence.
        model: What `load_model` takes.
        dtype: As in `load_model`.
        environment: "here", or "peers" for the virtual environment that `eval.baselines` builds.
        not_run_here: Why there is no committed result; empty where there is one.
        profile: How to profile.
        variants: What stands beside the dense model.
        tasks: What is measured: settings dataclasses of `eval.tasks`.
    """

    name: str
    title: str
    model: str
    dtype: str
    environment: str
    not_run_here: str
    profile: ProfileSettings
    variants: tuple[Variant, ...]
    tasks: tuple[Any, ...]

    def to_json(self) -> dict[str, Any]:
        """The resolved recipe as a JSON object; each task says its `task`."""
        data = asdict(self)
        data["tasks"] = [{"task": task.kind} | asdict(task) for task in self.tasks]
        return data

    @property
    def sha256(self) -> str:
        """Of everything in it but words."""
        data = {key: value for key, value in self.to_json().items() if key not in ("title", "not_run_here")}
        return hashlib.sha256(dump_json(data).encode()).hexdigest()


def load_recipe(path: Path | str, kinds: Mapping[str, type[Task]]) -> Recipe:
    """Read a recipe and put the defaults of `recipes/base.yaml` under it.

    Args:
        path: A file, or its name below recipes/ without the ending.
        kinds: The tasks that a recipe may name.

    Raises:
        GeosparseError: Not there, not YAML, an unknown key or task, a value of the wrong type, nothing to measure.
    """
    path = Path(path)
    if not path.exists() and path.suffix != ".yaml" and (RECIPES / f"{path}.yaml").exists():
        path = RECIPES / f"{path}.yaml"
    base, given = _read(BASE), _read(path)
    unknown = given.keys() - (base.keys() - {"variant"}) - {"variants", "tasks"}
    if unknown:
        key = min(unknown)
        raise GeosparseError(
            f"{path}: unknown key {key!r}; {did_you_mean(key, {*base, 'variants', 'tasks'} - {'variant'})}"
        )
    profile = _build(
        ProfileSettings, base["profile"] | _mapping(given.get("profile", {}), "profile"), f"{path}: profile"
    )
    entries = [entry for item in _list(given, "variants", path) for entry in _product(_mapping(item, "a variant"))]
    variants = tuple(_build(Variant, base["variant"] | entry, f"{path}: variant") for entry in entries)
    tasks = tuple(
        task
        for item in _list(given, "tasks", path)
        for entry in _product(_mapping(item, "a task"))
        for task in [_task(kinds, base, entry, path)]
    )
    if not tasks:
        raise GeosparseError(f"{path} names no task: give at least one, of {', '.join(sorted(kinds))}.")
    _refuse_repeats([variant.id for variant in variants], "variant", path)
    _refuse_repeats([task.id for task in tasks], "task", path)
    plain = {key: given.get(key, base[key]) for key in ("title", "model", "dtype", "environment", "not_run_here")}
    for key, value in plain.items():
        if not isinstance(value, str):
            raise GeosparseError(f"{path}: {key} should be text, found {value!r}.")
    return Recipe(_name(path), profile=profile, variants=variants, tasks=tasks, **plain)


def _name(path: Path) -> str:
    resolved = path.resolve().with_suffix("")
    return resolved.relative_to(RECIPES).as_posix() if resolved.is_relative_to(RECIPES) else resolved.name


def _read(path: Path) -> dict[str, Any]:
    from yaml import YAMLError

    if check_readable(path) > MAX_RECIPE:
        raise GeosparseError(f"{path} has more than {MAX_RECIPE} bytes: a recipe is a few lines of YAML.")
    try:
        with os_errors_as("read the recipe", path):
            data = parse_yaml(path.read_text(encoding="utf-8"))
    # What PyYAML makes of a date that is none is a plain ValueError, as text that is not UTF-8 is.
    except (YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise GeosparseError(f"{path} is not YAML: {reason}; correct it.") from error
    return _mapping(data, str(path))


def _mapping(data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise GeosparseError(f"{what} should be a mapping of names to values, found {type(data).__name__}.")
    return data


def _list(given: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    value = given.get(key, [])
    if not isinstance(value, list):
        raise GeosparseError(f"{path}: {key} should be a list, found {type(value).__name__}.")
    return value


def _product(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per combination of the elements of its lists."""
    choices = [value if isinstance(value, list) else [value] for value in entry.values()]
    if (count := math.prod(map(len, choices))) > MAX_ENTRIES:
        raise GeosparseError(
            f"The lists of one entry stand for {count} of them, more than {MAX_ENTRIES}: shorten them."
        )
    return [dict(zip(entry, combination, strict=True)) for combination in itertools.product(*choices)]


def _task(kinds: Mapping[str, type[Task]], base: dict[str, Any], entry: dict[str, Any], path: Path) -> Any:
    kind = str(entry.get("task"))
    if kind not in kinds:
        raise GeosparseError(f"{path}: unknown task {entry.get('task')!r}; {did_you_mean(kind, kinds)}")
    rest = {key: value for key, value in entry.items() if key != "task"}
    return _build(kinds[kind].settings_class, base["tasks"][kind] | rest, f"{path}: task {kind}")


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    """A dataclass from a mapping: every field there, none unknown, each of its type; one value stands for a tuple."""
    from pydantic import TypeAdapter, ValidationError

    types = {field.name: field.type for field in fields(kind)}
    for key in values:
        if key not in types:
            raise GeosparseError(f"{where}: unknown key {key!r}; {did_you_mean(key, types)}")
    for key, hint in get_type_hints(kind).items():
        if key not in values:
            raise GeosparseError(f"{where}: {key} is missing.")
        value = values[key]
        if get_origin(hint) is tuple:
            value = tuple(value) if isinstance(value, list | tuple) else (value,)
        try:
            values = values | {key: TypeAdapter(hint).validate_python(value, strict=True)}
        except ValidationError as error:
            raise GeosparseError(f"{where}: {key} should be {types[key]}, found {values[key]!r}.") from error
        for number in values[key] if isinstance(values[key], tuple) else (values[key],):
            _check_bounds(f"{where}: {key}", key, number)
    return kind(**values)


def _check_bounds(where: str, key: str, value: Any) -> None:
    """Raise GeosparseError where a number is none that its setting can have; words and null pass."""
    if isinstance(value, float):
        check_number(where, value, above=0, most=1 if key == "density" else MAX_COUNT)
    elif isinstance(value, int):
        check_whole(where, value, least=0 if key in FROM_ZERO else 1)


def _refuse_repeats(ids: list[str], what: str, path: Path) -> None:
    repeated = [name for name in ids if ids.count(name) > 1]
    if repeated:
        raise GeosparseError(f"{path}: the {what} {repeated[0]} is there twice; leave one out.")


def _given(variant: Variant) -> str:
    return f"mean_keep {variant.mean_keep}, density {variant.density}"

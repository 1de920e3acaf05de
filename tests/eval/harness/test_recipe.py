"""Recipes: differences on top of one file of defaults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eval.harness.recipe import RECIPES, Recipe
from eval.harness.recipe import load_recipe as load_recipe_of
from eval.tasks import TASKS
from geosparse.errors import GeosparseError


def load_recipe(path: Path | str) -> Recipe:
    return load_recipe_of(path, TASKS)


def test_every_recipe_of_the_house_resolves() -> None:
    paths = [path for path in RECIPES.rglob("*.yaml") if path.name != "base.yaml"]
    assert RECIPES / "smoke.yaml" in paths
    names = [load_recipe(path).name for path in paths]
    assert len(names) == len(set(names))
    assert load_recipe("smoke") == load_recipe(RECIPES / "smoke.yaml")


def test_lists_stand_for_one_entry_each(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "variants: [{policy: [fisher, uniform], mean_keep: [16, 32.5]}]\n"
        "tasks: [{task: needle, length: [512, 1024]}, {task: decode}]\n"
    )
    recipe = load_recipe(tmp_path / "a.yaml")
    ids = ["fisher-blend-16", "fisher-blend-32.5", "uniform-blend-16", "uniform-blend-32.5"]
    assert [variant.id for variant in recipe.variants] == ids
    assert [task.id for task in recipe.tasks] == ["needle-512", "needle-1024", "decode-pydoc-test-2048"]
    assert recipe.name == "a"
    assert recipe.model == "smollm2-135m"
    assert recipe.profile.lengths == (512, 1024, 2048)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tasks: [", "not YAML"),
        ("[]", "should be a mapping"),
        ("tasks: []", "names no task"),
        ("modle: a\ntasks: [{task: needle}]", "did you mean 'model'"),
        ("tasks: [{task: needel}]", "did you mean 'needle'"),
        ("tasks: [{task: needle, lenght: 3}]", "did you mean 'length'"),
        ("tasks: [{task: needle, length: long}]", "length should be int, found 'long'"),
        ("tasks: [{task: needle}, {task: needle}]", "there twice"),
        ("variants: [{policy: fisher}]\ntasks: [{task: needle}]", "either mean_keep or density"),
        ("variants: [{peer: snapkv, mean_keep: 3}]\ntasks: [{task: needle}]", "density of the context"),
        ("profile: {windows: true}\ntasks: [{task: needle}]", "windows should be int, found True"),
        ("profile: {lengths: [512, long]}\ntasks: [{task: needle}]", "found [512, 'long']"),
        ("variants: [{mean_keep: '3'}]\ntasks: [{task: needle}]", "mean_keep should be float | None, found '3'"),
        (
            "variants: [{mean_keep: .nan}]\ntasks: [{task: needle}]",
            "mean_keep: give a finite number above 0, found nan",
        ),
        ("variants: [{mean_keep: .inf}]\ntasks: [{task: needle}]", "found inf"),
        ("variants: [{mean_keep: 1.0e+300}]\ntasks: [{task: needle}]", "up to 2.14748e+09, found 1e+300"),
        ("variants: [{mean_keep: -3}]\ntasks: [{task: needle}]", "mean_keep: give a finite number above 0, found -3"),
        ("variants: [{density: 1.5}]\ntasks: [{task: needle}]", "above 0, up to 1, found 1.5"),
        (
            "variants: [{density: 0}]\ntasks: [{task: needle}]",
            "density: give a finite number above 0, up to 1, found 0",
        ),
        ("variants: [{mean_keep: 3, seed: -1}]\ntasks: [{task: needle}]", "seed must be at least 0, found -1"),
        ("variants: [{mean_keep: 3, length: 0}]\ntasks: [{task: needle}]", "length must be at least 1, found 0"),
        ("profile: {lengths: [512, -1]}\ntasks: [{task: needle}]", "lengths must be at least 1, found -1"),
        ("profile: {windows: 0}\ntasks: [{task: needle}]", "windows must be at least 1, found 0"),
        ("tasks: [{task: needle, samples: 99999999999}]", "samples must be at most 2147483647"),
        ("tasks: [{task: needle, length: 3, length: 4}]", "the key 'length' is there twice"),
        ("model: a\nmodel: b\ntasks: [{task: needle}]", "the key 'model' is there twice"),
        ("model: 5\ntasks: [{task: needle}]", "model should be text, found 5"),
        ("dtype: {a: b}\ntasks: [{task: needle}]", "dtype should be text"),
        ("variants: 3\ntasks: [{task: needle}]", "variants should be a list, found int"),
        ("tasks: {task: needle}", "tasks should be a list, found dict"),
        ("tasks:", "tasks should be a list, found NoneType"),
        ("title: &a [x]\nmodel: *a\ntasks: [{task: needle}]", "an alias (*name) stands for another place"),
        ("title: 2026-13-45\ntasks: [{task: needle}]", "not YAML: month must be in 1..12"),
        ("[" * 3000, "not YAML"),
        (f"variants: [{{mean_keep: {list(range(1, 200))}, seed: {list(range(99))}}}]\ntasks: []", "more than 10000"),
    ],
)
def test_mistakes_are_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(GeosparseError) as caught:
        load_recipe(tmp_path / "a.yaml")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_do_not_change_the_hash(tmp_path: Path) -> None:
    hashes = []
    for title in ("title: a", "title: b", "dtype: bfloat16"):
        (tmp_path / "a.yaml").write_text(f"{title}\ntasks: [{{task: needle}}]")
        hashes.append(load_recipe(tmp_path / "a.yaml").sha256)
    assert hashes[0] == hashes[1] != hashes[2]


def test_files_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("title: caf\u00e9".encode("latin-1"))
    (tmp_path / "zeros.yaml").write_bytes(bytes(99))
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(1 << 30)
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "folder.yaml").mkdir()
    for path in (*tmp_path.iterdir(), tmp_path / "none.yaml", Path("/dev/zero"), Path("/dev/null"), Path("a\0b")):
        with pytest.raises(GeosparseError) as caught:
            load_recipe(path)
        assert "\n" not in str(caught.value)

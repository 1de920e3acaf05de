"""Recipes: differences on top of one file of defaults."""

from __future__ import annotations

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

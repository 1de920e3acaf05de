"""A recipe on a tiny model: killed wherever it may be, it ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.recipe import ROOT
from eval.results import read_result, read_timing
from eval.run import main
from tests.tiny import save_tiny

RECIPE = """
title: A test
model: {model}
profile: {{lengths: [32, 64], windows: 2}}
variants:
  - {{mean_keep: 8}}
  - {{policy: [uniform, permuted], tail: renormalize, density: 0.1}}
tasks:
  - {{task: perplexity, length: 300, samples: 3, chunk: 128}}
  - {{task: needle, length: 300, samples: 3}}
  - {{task: decode, length: 128, scored: 16, timed: 2, samples: 2}}
"""
SAME = ("result.json", "samples.jsonl", "recipe.yaml")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    save_tiny(folder / "model")
    (folder / "test.yaml").write_text(RECIPE.format(model=folder / "model"))
    return folder / "test.yaml"


@pytest.fixture(scope="module")
def whole(recipe: Path) -> Path:
    """The result of an uninterrupted run."""
    results = recipe.parent / "whole"
    assert main([str(recipe), "--results", str(results), "--limit", "9"]) == 0
    return results / "_scratch" / "test" / "result"


def test_the_result_says_everything(whole: Path) -> None:
    result = read_result(whole / "result.json")
    assert [info.id for info in result.variants] == [
        "dense", "fisher-blend-8", "uniform-renormalize-10pct", "permuted-renormalize-10pct",
    ]  # fmt: skip
    assert {info.samples_effective for info in result.tasks} == {2, 3}
    assert all(info.samples_original >= info.samples_effective for info in result.tasks)
    assert all(len(info.sha256) == len(info.data_sha256) == 64 for info in result.tasks)
    assert result.provenance["versions"]["torch"]
    rows = result.of("perplexity-pydoc-test-300", "nll")
    assert rows["dense"].density is None
    assert rows["dense"].difference is None
    assert 0 < rows["fisher-blend-8"].density < 0.2
    assert rows["fisher-blend-8"].difference == rows["fisher-blend-8"].value - rows["dense"].value
    assert rows["fisher-blend-8"].interval[0] < rows["fisher-blend-8"].difference < rows["fisher-blend-8"].interval[1]
    assert any("no better than guessing" in text for text in result.warnings)
    assert all(each.tasks == 2 for each in result.summary)  # without the needle
    assert {row["variant"] for row in read_timing(whole)["rows"] if "ms_per_token" in row} == set(rows)
    assert sorted(path.name for path in (whole / "plans").iterdir())[0] == "fisher-blend-8-at-128.json"
    assert (whole / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_killed_at_random_moments(seed: int, recipe: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL, at moments that no one has prepared for: after each some seconds more until it is through."""
    results, source = tmp_path / "results", random.Random(seed)
    command = [sys.executable, "-m", "eval.run", str(recipe), "--results", str(results), "--limit", "9"]
    parts = results / "_scratch" / "test" / "parts"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        before, patience = _size(parts), time.monotonic() + 120
        # Not before something has been written since the start, else a slow machine never gets anywhere.
        while process.poll() is None and _size(parts) == before and time.monotonic() < patience:
            time.sleep(0.02)
        time.sleep(source.random() * 0.4)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False).returncode == 0
    for name in SAME:
        ours = (results / "_scratch" / "test" / "result" / name).read_bytes()
        assert ours == (whole / name).read_bytes(), name


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.jsonl"))


def test_a_finished_run_computes_nothing(recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.measure import Bench

    monkeypatch.setattr(Bench, "_one", lambda *arguments: pytest.fail("a sample was scored again"))
    before = (whole / "result.json").read_bytes()
    stale = whole / "plans" / "fisher-drop-8-at-128.json"  # of a variant that the recipe no longer has
    stale.write_text("{}")
    assert main([str(recipe), "--results", str(whole.parents[2]), "--limit", "9"]) == 0
    assert (whole / "result.json").read_bytes() == before
    assert not stale.exists()


@pytest.mark.parametrize("where", ["values", "answers"])
def test_a_score_that_is_no_number_is_not_kept(
    where: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.tasks import Outcome
    from eval.tasks.perplexity import Perplexity

    score = Perplexity.score

    def broken(self: Perplexity, place: int, method: object) -> Outcome:
        outcome = score(self, place, method)
        changed = {"values": outcome.values | {"nll": float("nan")}, "answers": [[float("-inf"), False]]}
        return dataclasses.replace(outcome, **{where: changed[where]}) if place == 1 else outcome

    monkeypatch.setattr(Perplexity, "score", broken)
    task = "perplexity-pydoc-test-300"
    flags = [str(recipe), "--results", str(tmp_path), "--only", task, "--variants", "dense"]
    assert main(flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"eval.run: error: {task}, dense, sample 1: a score is no finite number")
    monkeypatch.setattr(Perplexity, "score", score)
    assert main(flags) == 0
    lines = (tmp_path / "_scratch" / "test" / "parts" / task / "dense.jsonl").read_text().splitlines()
    assert [json.loads(line).get("sample") for line in lines] == [None, 0, 1, 2]


def test_limit_and_only(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [str(recipe), "--results", str(tmp_path), "--limit", "1"]
    assert main([*flags, "--only", "decode-pydoc-test-128", "--variants", "dense"]) == 0
    assert "still to be scored" in capsys.readouterr().out
    assert not list(tmp_path.rglob("result.json"))
    assert main([*flags, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["run"]["limit"] == 1
    assert {info["samples_effective"] for info in data["tasks"]} == {1}
    assert [path.parent.parent.parent.name for path in tmp_path.rglob("result.json")] == ["_scratch"]


@pytest.mark.slow
def test_a_parked_run_goes_on_elsewhere(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.session import Session

    here, there = tmp_path / "here", tmp_path / "there"
    assert main([str(recipe), "--results", str(here), "--only", "decode-pydoc-test-128"]) == 0
    assert main([str(recipe), "--results", str(here), "--park"]) == 0
    assert "6 plans and 4 files of samples" in capsys.readouterr().out
    parked = here / "test" / "unfinished"
    shutil.copytree(parked, there / "test" / "unfinished")
    monkeypatch.setattr(Session, "_profile", lambda *arguments: pytest.fail("a profile was made again"))
    monkeypatch.setattr("eval.session.commit", lambda: ("abc", True))
    assert main([str(recipe), "--results", str(there)]) == 0
    assert not (there / "test" / "unfinished").exists()
    assert (there / "test" / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_parked_plans_of_another_profile_are_not_taken(recipe: Path, tmp_path: Path) -> None:
    from eval.parked import park, unpark

    parts = tmp_path / "parts"
    (parts / "task").mkdir(parents=True)
    (parts / "task" / "dense.jsonl").write_text("{}\n")
    assert park(tmp_path / "unfinished", parts, {}, {"profile": 1}) == 1
    assert unpark(tmp_path / "unfinished", tmp_path / "other", {"profile": 2}) == {}
    assert not (tmp_path / "other").exists()
    unpark(tmp_path / "unfinished", tmp_path / "other", {"profile": 1})
    assert (tmp_path / "other" / "task" / "dense.jsonl").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("clean", "flags", "place"),
    [(True, [], "test"), (False, [], "_scratch/test/result"), (True, ["--limit", "9"], "_scratch/test/result")],
)
def test_only_whole_runs_of_committed_code_are_official(
    clean: bool, flags: list[str], place: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.run import _parser
    from eval.session import Session

    monkeypatch.setattr("eval.session.commit", lambda: ("abc", clean))
    session = Session(_parser().parse_args([str(recipe), "--results", str(tmp_path), *flags]))
    assert session.folder == tmp_path / place


def test_a_second_run_in_the_same_place_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.store import alone

    with alone(tmp_path / "_scratch" / "test"):
        assert main([str(recipe), "--results", str(tmp_path)]) == 2
    assert "running already" in capsys.readouterr().err


def test_mistakes_are_one_sentence(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere.yaml")]) == 2
    assert main([str(recipe), "--limit", "0"]) == 2
    assert main([str(recipe), "--results", str(tmp_path), "--only", "needle-30"]) == 2
    path = tmp_path / "a.yaml"
    path.write_text(recipe.read_text() + '  - {task: perplexity, text: "data:a.txt", length: 64}\n')
    assert main([str(path), "--results", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("eval.run: error: ") for line in errors if "error" in line] == [True] * 4
    assert "--data FOLDER" in errors[-1]

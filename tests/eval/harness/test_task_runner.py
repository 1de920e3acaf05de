"""Scores are computed once, and only numbers are kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from eval.run import main


def test_a_finished_run_computes_nothing(recipe: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.harness.task_runner import TaskRunner

    monkeypatch.setattr(TaskRunner, "_one", lambda *arguments: pytest.fail("a sample was scored again"))
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
    from eval.harness.task import Outcome
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

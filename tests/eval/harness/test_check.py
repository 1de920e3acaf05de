"""`--check`: a result is scored anew by its own plans and compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eval.harness.check import SCORE_TOLERANCE
from eval.run import main
from tests.tiny import save_tiny

RECIPE = """
title: A test
model: {model}
profile: {{lengths: [32, 64], windows: 2}}
variants:
  - {{mean_keep: 8}}
  - {{policy: uniform, tail: renormalize, mean_keep: 8}}
tasks:
  - {{task: perplexity, length: 128, samples: 3, chunk: 128}}
  - {{task: decode, length: 128, scored: 16, timed: 2, samples: 2}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and a folder with its whole result."""
    folder = tmp_path_factory.mktemp("check")
    save_tiny(folder / "model")
    recipe = folder / "test.yaml"
    recipe.write_text(RECIPE.format(model=folder / "model"))
    assert main([str(recipe), "--results", str(folder / "made"), "--limit", "9"]) == 0
    shutil.copytree(folder / "made" / "_scratch" / "test" / "result", folder / "results" / "test")
    return recipe, folder / "results"


@pytest.fixture
def committed(made: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """The command's arguments for a copy of that result."""
    shutil.copytree(made[1], tmp_path / "results")
    return [str(made[0]), "--results", str(tmp_path / "results")]


def test_the_same_machine_repeats_every_bit(
    committed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.harness.session import Session

    monkeypatch.setattr(Session, "_profile", lambda *arguments: pytest.fail("plans are there, no profile is needed"))
    before = {path: path.read_bytes() for path in (tmp_path / "results" / "test").rglob("*") if path.is_file()}
    assert main([*committed, "--check", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["same"]
    assert data["versions"] == []
    assert {row["task"] for row in data["rows"]} == {"perplexity-pydoc-test-128", "decode-pydoc-test-128"}
    assert {(row["compared"], row["equal"]) for row in data["rows"]} == {(6, 6)}  # two samples, three variants
    assert len(data["speed"]) == 5  # two sparse variants also with torch's products
    assert {path: path.read_bytes() for path in before} == before


def test_a_score_that_differs_is_named(
    committed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results" / "test" / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if (row["task"], row["variant"]) == ("decode-pydoc-test-128", "fisher-blend-8"):
            row["values"][1] += 2 * SCORE_TOLERANCE
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    assert main([*committed, "--check", "1"]) == 0  # the first sample is as it was
    assert main([*committed, "--check", "2"]) == 1
    out = capsys.readouterr().out
    assert "decode-pydoc-test-128, nll: 5 of 6 scores equal, largest difference 0.001 (fisher-blend-8, sample 1)" in out
    assert out.splitlines()[-1].startswith("18 scores anew: differs from ")
    assert main([*committed, "--check", "2", "--variants", "dense"]) == 0
    assert main([*committed, "--check", "2", "--only", "perplexity-pydoc-test-128"]) == 0


def test_samples_of_a_check_that_was_stopped_are_taken_and_those_of_a_run_are_not(
    committed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.harness.task_runner import TaskRunner

    scored: list[int] = []
    one = TaskRunner._one

    def counted(self: TaskRunner, *arguments: object) -> None:
        scored.append(1)
        if len(scored) == 4:
            raise KeyboardInterrupt
        one(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TaskRunner, "_one", counted)
    assert main([*committed, "--check", "1"]) == 130
    assert main([*committed, "--check", "1"]) == 0
    assert len(scored) == 4 + 3
    assert main([*committed, "--check", "1"]) == 0  # a check that is through begins anew
    assert len(scored) == 4 + 3 + 6


def test_mistakes_are_one_sentence(committed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*committed, "--check", "0"])
    assert main([*committed, "--check", "1", "--limit", "3"]) == 2
    grown = tmp_path / "test.yaml"
    grown.write_text(Path(committed[0]).read_text().replace("samples: 3", "samples: 4"))
    assert main([str(grown), *committed[1:], "--check", "1"]) == 2
    (tmp_path / "results" / "test" / "result.json").unlink()
    assert main([*committed, "--check", "1"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    words = ("at least 1", "leave out", "has changed since", "no result to check")
    assert [word in line for word, line in zip(words, errors, strict=True)] == [True] * 4

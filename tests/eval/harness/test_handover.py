"""An unfinished run that another machine goes on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from eval.run import main


@pytest.mark.slow
def test_a_parked_run_goes_on_elsewhere(
    recipe: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.harness.session import Session

    here, there = tmp_path / "here", tmp_path / "there"
    assert main([str(recipe), "--results", str(here), "--only", "decode-pydoc-test-128"]) == 0
    assert main([str(recipe), "--results", str(here), "--park"]) == 0
    assert "6 plans and 4 files of samples" in capsys.readouterr().out
    parked = here / "test" / "unfinished"
    shutil.copytree(parked, there / "test" / "unfinished")
    monkeypatch.setattr(Session, "_profile", lambda *arguments: pytest.fail("a profile was made again"))
    monkeypatch.setattr("eval.harness.session.commit", lambda: ("abc", True))
    assert main([str(recipe), "--results", str(there)]) == 0
    assert not (there / "test" / "unfinished").exists()
    assert (there / "test" / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()


def test_parked_plans_of_another_profile_are_not_taken(recipe: Path, tmp_path: Path) -> None:
    from eval.harness.handover import park, unpark

    parts = tmp_path / "parts"
    (parts / "task").mkdir(parents=True)
    (parts / "task" / "dense.jsonl").write_text("{}\n")
    assert park(tmp_path / "unfinished", parts, {}, {"profile": 1}) == 1
    assert unpark(tmp_path / "unfinished", tmp_path / "other", {"profile": 2}) == {}
    assert not (tmp_path / "other").exists()
    unpark(tmp_path / "unfinished", tmp_path / "other", {"profile": 1})
    assert (tmp_path / "other" / "task" / "dense.jsonl").read_text() == "{}\n"

"""Where the result of a run goes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("clean", "limit", "place"),
    [(True, None, "test"), (False, None, "_scratch/test/result"), (True, 9, "_scratch/test/result")],
)
def test_only_whole_runs_of_committed_code_are_official(
    clean: bool, limit: int | None, place: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.baselines import baseline
    from eval.harness.session import Session, SessionOptions
    from eval.tasks import TASKS

    monkeypatch.setattr("eval.harness.session.commit", lambda: ("abc", clean))
    session = Session(SessionOptions(str(recipe), tmp_path, limit=limit), TASKS, baseline)
    assert session.folder == tmp_path / place

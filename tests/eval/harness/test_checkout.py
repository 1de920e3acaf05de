"""The commit that numbers come from, and whether the files that decide them are as committed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from eval.harness import checkout


def test_changes_are_seen_where_they_decide_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout, "ROOT", tmp_path)
    assert checkout.commit() == (None, True)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "a.yaml").write_text("{}")
    author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    head, clean = checkout.commit()
    assert len(head or "") == 12
    assert clean
    (tmp_path / "notes.txt").write_text("decides nothing")
    assert checkout.commit() == (head, True)
    (tmp_path / "recipes" / "a.yaml").write_text("[]")
    assert checkout.commit() == (head, False)

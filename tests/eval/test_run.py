"""A recipe on a tiny model: killed wherever it may be, it ends with the bytes of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.harness.checkout import ROOT
from eval.run import main

SAME = ("result.json", "samples.jsonl", "recipe.yaml")


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


def test_mistakes_are_one_sentence(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere.yaml")]) == 2
    with pytest.raises(SystemExit, match="2"):
        main([str(recipe), "--limit", "0"])
    assert main([str(recipe), "--results", str(tmp_path), "--only", "needle-30"]) == 2
    path = tmp_path / "a.yaml"
    path.write_text(recipe.read_text() + '  - {task: perplexity, text: "data:a.txt", length: 64}\n')
    assert main([str(path), "--results", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [
        line.startswith(("eval.run: error: ", "python -m eval.run: error: ")) for line in errors if "error" in line
    ] == [True] * 4
    assert "--data FOLDER" in errors[-1]

"""Same machine, same number of threads, same seed: the same bytes, from fresh processes with other hash seeds."""

import json
import os
import subprocess
import sys

import pytest

from .artifacts.test_profile import TEXT
from .tiny import save_tiny

PROFILE = ["profile", "model", "--text", "book.txt", "--lengths", "40,80", "--windows", "3", "--queries", "7"]
STEPS = {
    "profile.safetensors": [*PROFILE, "--out", "profile.safetensors"],
    "plan.json": ["plan", "profile.safetensors", "--mean-keep", "6", "--out", "plan.json"],
    "random.json": ["plan", "profile.safetensors", "--mean-keep", "6", "--policy", "random", "--out", "random.json"],
    "permuted.json": [
        "plan",
        "profile.safetensors",
        "--density",
        "0.1",
        "--policy",
        "permuted",
        "--out",
        "permuted.json",
    ],
    "profile.html": ["inspect", "profile.safetensors", "--html", "profile.html"],
    "plan.html": ["inspect", "plan.json", "--html", "plan.html"],
    "score": [
        "score",
        "model",
        "--plan",
        "plan.json",
        "--text",
        "book.txt",
        "--length",
        "40",
        "--windows",
        "3",
        "--json",
    ],
    "generate": ["generate", "model", "--plan", "plan.json", "--prompt", "alpha", "--max-new-tokens", "5", "--json"],
}


# All steps in one process: what they print goes to a file of the step's name where they write none.
SCRIPT = """
import contextlib, io, json, pathlib, sys
from geosparse.cli.main import main
for name, step in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(step) == 0, name
    if not pathlib.Path(name).exists():
        pathlib.Path(name).write_text(said.getvalue())
"""


def run(folder, hash_seed, threads):
    """Every step, in a fresh process; the bytes of each."""
    folder.mkdir()
    save_tiny(folder / "model")
    (folder / "book.txt").write_text(TEXT * 2, encoding="utf-8")
    changes = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", SCRIPT, json.dumps(STEPS)]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, env=os.environ | changes)
    return {name: (folder / name).read_bytes() for name in STEPS}


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_profile_plan_and_results_are_the_same_byte_for_byte(tmp_path, threads):
    first, second = (run(tmp_path / seed, seed, threads) for seed in ("1", "2"))
    assert all(first.values())
    assert [name for name in STEPS if first[name] != second[name]] == []

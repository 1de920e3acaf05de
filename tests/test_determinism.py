"""Same machine, same number of threads, same seed: the same bytes, from fresh processes with other hash seeds."""

import os
import subprocess
import sys

import pytest

from .test_profile import TEXT
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


def run(folder, hash_seed, threads):
    """Every step in a process of its own; what it wrote, or printed where it wrote nothing."""
    folder.mkdir()
    save_tiny(folder / "model")
    (folder / "book.txt").write_text(TEXT * 2, encoding="utf-8")
    changes = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": threads}
    said = {}
    for name, step in STEPS.items():
        command = [sys.executable, "-m", "geosparse", *step]
        found = subprocess.run(command, cwd=folder, capture_output=True, check=True, env=os.environ | changes)
        said[name] = (folder / name).read_bytes() if (folder / name).exists() else found.stdout
    return said


@pytest.mark.parametrize("threads", ["1", "2"])
def test_profile_plan_and_results_are_the_same_byte_for_byte(tmp_path, threads):
    first, second = (run(tmp_path / seed, seed, threads) for seed in ("1", "2"))
    assert all(first.values())
    assert [name for name in STEPS if first[name] != second[name]] == []

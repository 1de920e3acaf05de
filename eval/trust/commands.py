"""The commands that are put to the test, on a model made of random numbers: how each is called and what it leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from geosparse.artifacts.plan import Plan
from geosparse.artifacts.profile import Profile
from geosparse.utils.files import read_json

GEOSPARSE = (sys.executable, "-m", "geosparse")
MARK = "GEOSPARSE_FAULTS"
"""An environment variable by which the processes of a run are found again."""


class Command(NamedTuple):
    """A command and the files that it leaves.

    Attributes:
        words: The command line; run in a folder that holds `model`, `book.txt`, `other.txt`,
            `recipe.yaml`, `p.safetensors`.
        outputs: Each file with what reads it and raises where it is not whole.
        same: Outputs that are the same bytes every time.
        refuses: What the second of two with one output says as it ends with 2; without it both complete.
    """

    words: Sequence[str]
    outputs: dict[str, Callable[[Path], object]]
    same: Sequence[str]
    refuses: str | None = None


def _json(path: Path) -> object:
    return read_json(path, "result")


def _html(path: Path) -> None:
    assert path.read_text(encoding="utf-8").endswith("</html>\n")


def _png(path: Path) -> None:
    assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


PROFILE = "profile model --text book.txt --lengths 40,80 --windows 6 --queries 9 --out q.safetensors"
PLAN = "plan p.safetensors --mean-keep 8 --out plan.json"
RECIPE = """\
title: A run that is disturbed
model: model
profile: {text: book.txt, lengths: [32, 64], windows: 2}
variants:
  - {mean_keep: 8}
  - {policy: uniform, tail: renormalize, density: 0.1}
tasks:
  - {task: perplexity, text: other.txt, length: 300, samples: 3, chunk: 128}
  - {task: needle, length: 300, samples: 3}
"""
RUN = "eval.run recipe.yaml --limit 9 --results results"
RESULT = "results/_scratch/recipe/result"
DEMO = "demo --model model --calibration book.txt --text other.txt --length 80 --windows 2 --out demo"
COMMANDS = {
    "profile": Command((*GEOSPARSE, *PROFILE.split()), {"q.safetensors": Profile.load}, ["q.safetensors"]),
    "plan": Command((*GEOSPARSE, *PLAN.split()), {"plan.json": Plan.load}, ["plan.json"]),
    "demo": Command(
        (*GEOSPARSE, *DEMO.split()),
        {
            "demo/profile.safetensors": Profile.load,
            "demo/plan.json": Plan.load,
            "demo/result.json": _json,
            "demo/report.html": _html,
            "demo/frontier.png": _png,
        },
        ["demo/profile.safetensors", "demo/plan.json"],
    ),
    "evaluation": Command(
        (sys.executable, "-m", *RUN.split()),
        {f"{RESULT}/result.json": _json, f"{RESULT}/timing.json": _json, f"{RESULT}/report.html": _html},
        [f"{RESULT}/result.json", f"{RESULT}/samples.jsonl", f"{RESULT}/recipe.yaml"],
        refuses="is running already",
    ),
}


def own_command(words: Sequence[str], outputs: Sequence[str]) -> Command:
    """A further command whose outputs are JSON, e.g. an evaluation."""
    return Command(tuple(words), dict.fromkeys(outputs, _json), ())


def environment(**changes: str) -> dict[str, str]:
    """One thread, no network, this checkout."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path, MARK: str(os.getpid())}
    return os.environ | fixed | changes


def start(command: Command, folder: Path, **changes: str) -> subprocess.Popen[str]:
    """The command in a process group of its own."""
    return subprocess.Popen(
        command.words,
        cwd=folder,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_interrupts,
    )


def hear_interrupts() -> None:
    """In a child: undo what a shell does to its background jobs, which ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def orphans() -> list[int]:
    """Processes of a run that are still there, besides this one."""
    mark, pids = f"{MARK}={os.getpid()}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            marked = mark in (folder / "environ").read_bytes().split(b"\0")
            running = (folder / "stat").read_text().rsplit(") ", 1)[1][0] != "Z"
        except OSError:
            continue
        if marked and running and int(folder.name) != os.getpid():
            pids.append(int(folder.name))
    return pids


def end(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> tuple[int, str]:
    """Send a signal to the process alone, not to its group; its exit code and standard error."""
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err

"""`python -m eval.run recipes/NAME.yaml`: run a recipe, or go on with it, into `results/NAME/`.

What is measured is kept sample by sample in `results/_scratch/NAME/`; a run that was stopped goes on there when the
same command is given again. Only a whole run of committed code reaches `results/NAME/`: results of `--limit` and of a
tree with changes in geosparse, eval or recipes stay in `results/_scratch/`. `--park` lets another machine go on;
`--check` scores a few samples of a committed result anew.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

from geosparse.console import Parser, run_command, say, whole

ROOT = Path(__file__).parents[1]
DECIDES = ("geosparse", "eval", "recipes")
DIFFERS = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    stopped = "stopped; the same command goes on from here."
    return run_command("eval.run", lambda: _run(_parser().parse_args(arguments)), stopped)


def _run(options: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as lm-eval does: its bootstrap forks
    if options.data is not None:
        _look_below(options.data)
    from .session import Session

    session = Session(options)
    if session.elsewhere:
        return session.run_elsewhere()
    if options.check is not None:
        text, same = session.check()
        print(text)
        return 0 if same else DIFFERS
    print(session.run())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m eval.run",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m eval.run smoke",
    )
    add = parser.add_argument
    add("recipe", help="a file, or its name below recipes/ without the ending")
    add("--data", type=Path, help="folder of texts named data:FILE; data sets of lm-eval are looked for in its hub/")
    add("--results", type=Path, default=ROOT / "results", help="where results go (results/)")
    add("--limit", type=whole(1), help="at most so many samples per task; the result goes to results/_scratch/")
    add("--only", help="score samples of these tasks only, by id, comma-separated; no result until all are there")
    add("--variants", help="the same for variants")
    what = "score nothing: put plans and samples into results/NAME/unfinished/, from where another machine goes on"
    add("--park", action="store_true", help=what)
    what = "score the first so many samples of each task anew, by the committed plans, and compare: 1 where they differ"
    add("--check", type=whole(1), metavar="SAMPLES", help=what)
    add("--model", help="another model than the recipe's: a folder, alias or hub id (results/_scratch/)")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def _look_below(data: Path) -> None:
    """Let data sets and nltk be found below `data`, without a network; before either is imported."""
    if not data.is_dir():
        return
    if (data / "hub").is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    if (data / "nltk_data").is_dir():
        os.environ.setdefault("NLTK_DATA", str((data / "nltk_data").resolve()))


def commit() -> tuple[str | None, bool]:
    """The commit of this checkout and whether what decides numbers is as committed; (None, True) without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        changed = bool(_git("status", "--porcelain", "--", *DECIDES).strip())
    except (OSError, subprocess.CalledProcessError):
        return None, True
    return head, not changed


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def show(data: Any) -> None:
    """Progress, on standard error."""
    say(str(data))


if __name__ == "__main__":
    raise SystemExit(main())

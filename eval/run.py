"""`python -m eval.run recipes/NAME.yaml`: run a recipe, or go on with it, into `results/NAME/`.

What is measured is kept sample by sample in `results/_scratch/NAME/`; a run that was stopped goes on there when the
same command is given again. Only a whole run of committed code reaches `results/NAME/`: results of `--limit` and of a
tree with changes in geosparse, eval or recipes stay in `results/_scratch/`. `--park` lets another machine go on;
`--check` scores a few samples of a committed result anew.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from geosparse.utils.console import Parser, json_text, run_command, whole

from .harness.checkout import ROOT

EXIT_DIFFERS = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    stopped = "stopped; the same command goes on from here."
    return run_command("eval.run", lambda: _run(vars(_parser().parse_args(arguments))), stopped)


def _run(options: dict[str, Any]) -> int:
    from .baselines import baseline
    from .baselines.environment import inside, run_inside
    from .harness.session import Session, SessionOptions
    from .report.page import write_page
    from .report.text import table
    from .tasks import TASKS

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as lm-eval does: its bootstrap forks
    as_json = options.pop("json")
    if options["data"] is not None:
        _look_below(options["data"])
    session = Session(SessionOptions(**options), TASKS, baseline)
    if session.recipe.environment == "peers" and not inside():
        return run_inside(["-m", "eval.run", *sys.argv[1:]])
    if session.options.check is not None:
        check, folder = session.check()
        print(json_text(check.to_json()) if as_json else check.text(folder), end="" if as_json else "\n")
        return 0 if check.same else EXIT_DIFFERS
    result, sentence = session.run()
    if result is None:
        print(sentence)
        return 0
    write_page(session.folder / "report.html", [session.folder])
    print(json_text(result.to_json()) if as_json else f"{table(result)}\n\n{sentence}", end="" if as_json else "\n")
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
    add(
        "--only",
        type=_names,
        default=(),
        help="score samples of these tasks only, by id, comma-separated; no result until all are there",
    )
    add("--variants", type=_names, default=(), help="the same for variants")
    what = "score nothing: put plans and samples into results/NAME/unfinished/, from where another machine goes on"
    add("--park", action="store_true", help=what)
    what = "score the first so many samples of each task anew, by the committed plans, and compare: 1 where they differ"
    add("--check", type=whole(1), metavar="SAMPLES", help=what)
    add("--model", help="another model than the recipe's: a folder, alias or hub id (results/_scratch/)")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(text.split(",")) if text else ()


def _look_below(data: Path) -> None:
    """Let data sets and nltk be found below `data`, without a network; before either is imported."""
    if not data.is_dir():
        return
    if (data / "hub").is_dir():
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    if (data / "nltk_data").is_dir():
        os.environ.setdefault("NLTK_DATA", str((data / "nltk_data").resolve()))


if __name__ == "__main__":
    raise SystemExit(main())

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

from geosparse.errors import GeosparseError

from .harness.checkout import ROOT

EXIT_STOPPED = 130
EXIT_DIFFERS = 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = vars(_parser().parse_args(arguments))
    as_json = options.pop("json")
    if options["data"] is not None:
        _look_below(options["data"])
    try:
        return _run(options, as_json)
    except GeosparseError as error:
        print(f"eval.run: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eval.run: stopped; the same command goes on from here.", file=sys.stderr)
        return EXIT_STOPPED


def _run(options: dict[str, Any], as_json: bool) -> int:
    from geosparse.artifact import dump_json

    from .baselines import baseline
    from .baselines.environment import inside, run_inside
    from .harness.session import Session, SessionOptions
    from .report.page import write_page
    from .report.text import table
    from .tasks import TASKS

    session = Session(SessionOptions(**options), TASKS, baseline)
    if session.recipe.environment == "peers" and not inside():
        return run_inside(["-m", "eval.run", *sys.argv[1:]])
    if session.options.check is not None:
        check, folder = session.check()
        print(dump_json(check.to_json()) if as_json else check.text(folder))
        return 0 if check.same else EXIT_DIFFERS
    result, sentence = session.run()
    if result is None:
        print(sentence)
        return 0
    write_page(session.folder / "report.html", [session.folder])
    print(dump_json(result.to_json()) if as_json else f"{table(result)}\n\n{sentence}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval.run",
        description=(__doc__ or "").splitlines()[0],
        epilog="example: python -m eval.run smoke",
    )
    add = parser.add_argument
    add("recipe", help="a file, or its name below recipes/ without the ending")
    add("--data", type=Path, help="folder of texts named data:FILE; data sets of lm-eval are looked for in its hub/")
    add("--results", type=Path, default=ROOT / "results", help="where results go (results/)")
    add("--limit", type=int, help="at most so many samples per task; the result goes to results/_scratch/")
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
    add("--check", type=int, metavar="SAMPLES", help=what)
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

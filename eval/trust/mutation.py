"""How many small mistakes the tests notice: `python -m eval.trust.mutation geometry planner selection --out FILE`.

Each mutant runs in a process forked from one that has the heavy libraries loaded already, with the tests of its module.
A mutant is killed when a test fails or runs for more than MUTANT_SECONDS.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import io
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from geosparse.errors import GeosparseError, did_you_mean
from geosparse.utils.console import Parser, whole
from geosparse.utils.files import dump_json, read_json, write_json

from .mutants import Mutant, mutants

SCHEMA = "geosparse.eval.mutation/1"
MUTANT_SECONDS = 120
ROOT = Path(__file__).parents[2]


# Subject -> module -> the tests that should notice what is wrong in it.
SUBJECTS: dict[str, dict[str, tuple[str, ...]]] = {
    "geometry": {
        "geosparse.geometry.separation": ("tests/geometry/test_separation.py",),
        "geosparse.geometry.tail_error": ("tests/geometry/test_tail_error.py", "tests/geometry/test_separation.py"),
    },
    "planner": {
        "geosparse.plan.make_plan": (
            "tests/plan/test_make_plan.py",
            "tests/plan/test_byte_budget.py",
            "tests/plan/test_growth.py",
        ),
        "geosparse.plan.candidates": ("tests/plan/test_make_plan.py", "tests/plan/test_byte_budget.py"),
        "geosparse.plan.error_curves": ("tests/plan/test_error_curves.py", "tests/plan/test_make_plan.py"),
        "geosparse.plan.growth": ("tests/plan/test_growth.py",),
        "geosparse.plan.byte_budget": ("tests/plan/test_byte_budget.py",),
    },
    "selection": {
        "geosparse.ops.topn": ("tests/ops/test_topn.py",),
        "geosparse.profile.selector_errors": ("tests/profile/test_selector_errors.py",),
    },
}


class _Instead(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from a source that is given."""

    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(name, self) if name == self.module else None

    def get_source(self, fullname: str) -> str:
        return self.source


def survives(module: str, mutant: Mutant, tests: Sequence[str]) -> bool:
    """Whether all `tests` pass with `mutant` in the place of `module`."""
    child = os.fork()
    if child == 0:
        signal.alarm(MUTANT_SECONDS)
        os._exit(_run_tests(module, mutant.source, tests))
    return os.waitpid(child, 0)[1] == 0


def _run_tests(module: str, source: str, tests: Sequence[str]) -> int:
    """In the child: everything of geosparse is imported afresh."""
    import hypothesis
    import pytest

    hypothesis.settings.register_profile("mutation", derandomize=True, database=None)
    hypothesis.settings.load_profile("mutation")
    for name in [name for name in sys.modules if name.split(".")[0] in ("geosparse", "tests")]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Instead(module, source))
    os.chdir(ROOT)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]))


def examine(
    module: str, tests: Sequence[str], most: int, seed: int, done: dict[str, bool], keep: Callable[[], object]
) -> None:
    """Run the mutants of one module that are not in `done`, which learns whether each was killed; at most `most` of
    them, drawn at random. `keep` is called after each."""

    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    chosen = mutants(source)
    if len(chosen) > most:
        chosen = random.Random(seed).sample(chosen, most)
    whole = Mutant(0, "nothing", source)
    if not survives(module, whole, tests):
        raise GeosparseError(f"The tests {' '.join(tests)} fail without any mutant: mend that first.")
    for mutant in chosen:
        name = f"{module}:{mutant.line} {mutant.what}"
        if name not in done:
            done[name] = not survives(module, mutant, tests)
            keep()


def _keep(out: Path, result: dict[str, Any], subject: str, done: dict[str, bool], finished: bool = False) -> None:
    """Write what is known so far."""
    share = sum(done.values()) / max(1, len(done))
    result["subjects"][subject] = {"killed": done, "mutants": len(done), "share_killed": share, "finished": finished}
    write_json(out, result)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; mutants that the file holds are not run again."""
    parser = Parser(prog="python -m eval.trust.mutation", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("subjects", nargs="+", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--most", type=whole(1), default=100, help="mutants per module, drawn at random (100)")
    parser.add_argument("--seed", type=whole(0), default=0, help="of the draw (0)")
    parser.add_argument("--survivors-again", action="store_true", help="run those that survived once more")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args(arguments)
    for subject in options.subjects:
        if subject not in SUBJECTS:
            raise SystemExit(f"Unknown subject {subject!r}: {did_you_mean(subject, SUBJECTS)}")
    import hypothesis  # noqa: F401 - loaded once, for all mutants
    import pytest  # noqa: F401
    import transformers  # noqa: F401

    from ..harness.threads import torch_threads

    result: dict[str, Any] = {"schema": SCHEMA, "subjects": {}}
    if options.out.exists():
        result = read_json(options.out, "result")
    for subject in options.subjects:
        done: dict[str, bool] = result["subjects"].get(subject, {}).get("killed", {})
        if options.survivors_again:
            done = {name: killed for name, killed in done.items() if killed}
        keep = partial(_keep, options.out, result, subject, done)
        with torch_threads(1):
            for module, tests in SUBJECTS[subject].items():
                examine(module, tests, options.most, options.seed, done, keep)
        keep(finished=True)
    shown = {name: {key: part[key] for key in part if key != "killed"} for name, part in result["subjects"].items()}
    survivors = {
        name: [mutant for mutant, killed in part["killed"].items() if not killed]
        for name, part in result["subjects"].items()
    }
    print(dump_json({"subjects": shown, "survivors": survivors}), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

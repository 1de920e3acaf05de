"""`python -m tests.fuzz --cases 20000`: read damaged files under watch, and print what went wrong as JSON.

A case fails when it raises anything but GeosparseError, says more than a sentence, takes more than SECONDS, runs code
(imports, compiles, unpickles, starts a process, opens a connection), or opens a file that is neither in its folder nor
of the installed Python and this package. Memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from geosparse.errors import GeosparseError

from .memory import peak_bytes
from .targets import Target, targets

SECONDS = 10.0
MOST_SHOWN = 10
FORBIDDEN = (
    *("exec", "compile", "import", "pickle.find_class", "marshal.loads", "ctypes.dlopen"),
    *("os.system", "os.exec", "os.fork", "subprocess.Popen", "socket.connect"),
)
BOOT_ID = "/proc/sys/kernel/random/boot_id"  # part of the names of temporary files
# How the version of an editable install is read.
OWN_METADATA = Path(__file__).parents[2] / "geosparse.egg-info"


class Watch:
    """An audit hook that, while a case runs, notes what no reader of a file may do."""

    def __init__(self, folder: Path) -> None:
        self.on, self.seen = False, list[str]()
        self.allowed = (str(folder), sys.prefix, sys.base_prefix, str(OWN_METADATA), BOOT_ID)
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in FORBIDDEN:
            self.seen.append(f"{event} {arguments[:1]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            name = os.path.abspath(os.fsdecode(arguments[0]))
            if not name.startswith(self.allowed):
                self.seen.append(f"open {name}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        self.seen = []
        self.on = True
        try:
            yield self.seen
        finally:
            self.on = False


class TooLong(BaseException):
    """A case that did not end."""


def _too_long(*_: Any) -> None:
    raise TooLong


def run_case(target: Target, blob: bytes, watch: Watch) -> tuple[str, str]:
    """One case: "read", "refused" or "failed", and why."""
    target.path.write_bytes(blob)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    outcome, why = "read", ""
    with watch.watching() as seen:
        try:
            target.read()
        except GeosparseError as error:
            outcome, why = "refused", str(error)
        except TooLong:
            outcome, why = "failed", f"more than {SECONDS:g} s"
        except Exception:  # noqa: BLE001 - to find the unexpected is what this is for
            outcome, why = "failed", traceback.format_exc(limit=-4)
    signal.setitimer(signal.ITIMER_REAL, 0)
    if outcome == "refused" and not why.endswith((".", "?")):
        outcome, why = "failed", f"not a sentence: {why}"
    if seen:
        outcome, why = "failed", f"it did {seen[:3]}"
    return outcome, why


def fuzz(cases: int, seed: int, only: str | None = None) -> dict[str, Any]:
    """Run `cases` cases, shared evenly over the targets (plans and profiles get most)."""
    signal.signal(signal.SIGALRM, _too_long)
    counts: dict[str, dict[str, int]] = {}
    failures: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["GEOSPARSE_CACHE"] = name
        all_targets = targets(folder)
        chosen = [only] if only else ["plan", "profile", "plan", "profile", *all_targets]
        for target in all_targets.values():  # everything is imported before the watch begins
            for blob in target.sound:
                target.path.write_bytes(blob)
                target.read()
        watch = Watch(folder)
        for case in range(cases):
            kind = chosen[case % len(chosen)]
            rng = random.Random(f"{seed} {case}")
            blob = all_targets[kind].damage(rng, rng.choice(all_targets[kind].sound))
            outcome, why = run_case(all_targets[kind], blob, watch)
            counts.setdefault(kind, {"read": 0, "refused": 0, "failed": 0})[outcome] += 1
            if outcome == "failed" and len(failures) < MOST_SHOWN:
                failures.append({"target": kind, "case": case, "why": why, "file": repr(blob[:300])})
    return {"cases": cases, "seed": seed, "counts": counts, "failures": failures, "peak_bytes": peak_bytes()}


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=int(os.environ.get("GEOSPARSE_FUZZ_CASES", "20000")))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one target")
    options = parser.parse_args()
    result = fuzz(options.cases, options.seed, options.only)
    print(json.dumps(result, indent=1))
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    raise SystemExit(main())

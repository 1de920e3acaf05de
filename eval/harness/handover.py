"""A run that is not finished, to be gone on with on another machine: its plans and its samples so far.

`python -m eval.run NAME --park` puts them into `results/NAME/unfinished/`. The same command without `--park` finds them
there, wherever that folder was taken to, and makes no profile; once the result is whole, the folder goes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from geosparse.artifacts.plan import Plan
from geosparse.utils.files import read_json, write_atomic, write_json

Plans = dict[tuple[str, int], Plan]
SCHEMA = "geosparse.unfinished/1"


def park(folder: Path, parts: Path, plans: Plans, about: dict[str, Any]) -> int:
    """Write `plans` and the samples below `parts` into `folder`; returns how many files of samples there are.

    Args:
        folder: What was there before is replaced.
        parts: Where the run keeps its samples.
        plans: By variant and length.
        about: What decides the plans besides the variants.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for (variant, length), plan in plans.items():
        plan.save(folder / "plans" / str(length) / f"{variant}.json")
    files = sorted(parts.glob("*/*.jsonl"))
    for file in files:
        _copy(file, folder / "parts" / file.relative_to(parts))
    write_json(folder / "about.json", _about(about))  # last: without it the folder is nothing
    return len(files)


def unpark(folder: Path, parts: Path, about: dict[str, Any]) -> Plans:
    """The plans that `park` wrote, where `about` is the same; samples that are not below `parts` are put there."""
    if not (folder / "about.json").exists() or read_json(folder / "about.json", "unfinished run") != _about(about):
        return {}
    for file in sorted((folder / "parts").glob("*/*.jsonl")):
        target = parts / file.relative_to(folder / "parts")
        if not target.exists():
            _copy(file, target)
    return {(file.stem, int(file.parent.name)): Plan.load(file) for file in sorted(folder.glob("plans/*/*.json"))}


def _about(what: dict[str, Any]) -> dict[str, Any]:
    return {"schema": SCHEMA} | what


def _copy(source: Path, target: Path) -> None:
    write_atomic(target, lambda temporary: temporary.write_bytes(source.read_bytes()))

"""`python -m eval.studies.planner MODEL`: run the parts that are missing, write each as soon as it is done."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from geosparse.artifacts.profile import Profile
from geosparse.errors import GeosparseError
from geosparse.hf.identity import identify
from geosparse.hf.loading import load_model
from geosparse.profile.profiler import ProfileConfig, profile_model
from geosparse.text import load_texts, text_sha256
from geosparse.utils.console import Parser, json_text, run_command, whole
from geosparse.utils.files import check_writable, read_json, write_json
from geosparse.utils.provenance import device_name, versions

from .parts import PARTS, PlannerStudy, name_of

SCHEMA = "geosparse.eval.planner/1"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command() -> None:
        options = _parser().parse_args(arguments)
        result = run(options)
        print(json_text(result) if options.json else f"{describe(result)}\nWrote {options.out}.")

    return run_command("eval.studies.planner", command)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m eval.studies.planner", description=__doc__)
    add = parser.add_argument
    add("model", help="folder, hub id, or alias: smollm2-135m, gemma3-270m")
    add("--texts", nargs="+", default=["pydoc:test", "pydoc:planning"], help="held-out texts, the main one first")
    add("--calibration", default="pydoc:calibration", help="text of the profile")
    add("--profile", type=Path, help="take this profile instead of making one")
    add("--long-profile", type=Path, help="profile of several lengths, for part 3")
    add("--length", type=whole(8), default=1024, help="tokens per window (1024)")
    add("--windows", type=whole(1), default=8, help="windows per text (8)")
    add("--calibration-windows", type=whole(1), default=8, help="windows of the profile (8)")
    add("--only", help=f"parts to run, of {','.join(PARTS)} (all)")
    add("--again", action="store_true", help="run parts that are done once more")
    add("--out", type=Path, required=True, help="JSON file; parts that it holds are not run again")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run the parts and return the result, which is also in the file."""
    path = check_writable(options.out)
    wanted = list(PARTS) if options.only is None else options.only.split(",")
    if unknown := set(wanted) - PARTS.keys():
        raise GeosparseError(f"There is no part {min(unknown)!r}: choose from {', '.join(PARTS)}.")
    model, tokenizer = load_model(options.model)
    if options.profile is not None:
        profile = Profile.load(options.profile)
        profile.check(model)
    else:
        config = ProfileConfig(length=options.length, windows=options.calibration_windows, kinds=())
        profile = profile_model(model, tokenizer, load_texts(options.calibration), config, show_progress=True)
    long = None if options.long_profile is None else Profile.load(options.long_profile)
    about = {
        "schema": SCHEMA,
        "model": identify(model).to_json(),
        "calibration": profile.calibration,
        "texts": {name_of(source): text_sha256(load_texts(source)) for source in options.texts},
        "length": options.length,
        "windows": options.windows,
    }
    result = about | {"parts": {}, "provenance": versions(), "device": device_name(model.device)}
    if path.exists():
        old = read_json(path, "result")
        if isinstance(old, dict) and all(old.get(key) == value for key, value in about.items()):
            result["parts"] = old["parts"]
    study = PlannerStudy(
        model, tokenizer, profile, options.calibration, options.texts, options.length, options.windows, long
    )
    for part in wanted:
        if part not in result["parts"] or options.again:
            result["parts"][part] = PARTS[part](study)
            write_json(path, result)
    return result


def describe(result: dict[str, Any]) -> str:
    """The rows of every part, numbers only."""
    lines = []
    for part, rows in sorted(result["parts"].items()):
        lines.append((PARTS[part].__doc__ or part).split("\n")[0])
        for row in rows:
            words = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, int | float)]
            names = [value for value in row.values() if isinstance(value, str)]
            nested = [f"{key} {value['excess_nll']:+.4f}" for key, value in row.items() if _is_excess(value)]
            lines.append("  " + ", ".join([*names, *words, *nested]))
    return "\n".join(lines)


def _is_excess(value: Any) -> bool:
    return isinstance(value, dict) and "excess_nll" in value


if __name__ == "__main__":
    raise SystemExit(main())

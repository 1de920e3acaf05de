"""`python -m eval.studies.robustness MODEL`: what plans lose on kinds of text, calibrated on or left out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from geosparse.artifacts.profile import Profile
from geosparse.hf.identity import identify
from geosparse.hf.loading import load_model
from geosparse.profile.calibration import texts_by_kind
from geosparse.profile.profiler import ProfileConfig, profile_to_file
from geosparse.text import load_texts, text_sha256
from geosparse.utils.console import Parser, json_text, run_command, whole, wholes
from geosparse.utils.files import check_writable, read_json, write_json
from geosparse.utils.provenance import device_name, versions

from .plans import PLANS, RobustnessStudy
from .table import describe, summarised
from .texts import python_version, texts_of

SCHEMA = "geosparse.eval.robustness/1"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""

    def command() -> None:
        options = _parser().parse_args(arguments)
        result = run(options)
        print(json_text(result) if options.json else f"{describe(result)}\nWrote {options.out}.")

    return run_command("eval.studies.robustness", command)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m eval.studies.robustness", description=__doc__)
    add = parser.add_argument
    add("model", help="folder, hub id, or alias: smollm2-135m, gemma3-270m")
    add("--calibration", default="pydoc:calibration", help="text of the profile, with the built-in kinds next to it")
    add("--calibration-windows", type=whole(1), default=4, help="windows of that text (4)")
    add("--data", type=Path, help="folder with books/, wikitext2/ and hub/, for novels and what is made of them")
    add("--text", action="append", default=[], metavar="NAME=SOURCE", help="a further held-out kind of text")
    add("--mean-keep", type=wholes(1), default=(8, 32), help="tokens per head, comma-separated (8,32)")
    add("--plans", default=",".join(PLANS), help=f"which plans, of {','.join(PLANS)} (all)")
    add("--length", type=whole(8), default=1024, help="tokens per window (1024)")
    add("--windows", type=whole(1), default=2, help="windows per kind of text (2)")
    add(
        "--out",
        type=Path,
        required=True,
        help="JSON file; what it holds is not run again; the profile stands next to it",
    )
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing and return the result, which is also in the file."""
    path = check_writable(options.out)
    model, tokenizer = load_model(options.model)
    texts = texts_of(options.data, options.text)
    profile = _profile(path.with_suffix(".safetensors"), model, tokenizer, options)
    about = {
        "schema": SCHEMA,
        "model": identify(model).to_json() | {"name": options.model},
        "calibration": profile.calibration,
        "length": options.length,
        "windows": options.windows,
        "python": python_version(),
        "texts": {name: text_sha256(text) for name, (text, _) in texts.items()},
    }
    result: dict[str, Any] = about | {"rows": {}, "provenance": versions(), "device": device_name(model.device)}
    if path.exists():
        old = read_json(path, "result")
        if isinstance(old, dict) and all(old.get(key) == value for key, value in about.items()):
            result["rows"] = old["rows"]
    study = RobustnessStudy(model, tokenizer, profile, texts, options.length, options.windows)
    for keep in options.mean_keep:
        for plan in options.plans.split(","):
            for text in texts:
                row = result["rows"].setdefault(f"{plan} {keep}", {})
                if text not in row:
                    row[text] = study.excess(plan, float(keep), text)
                    write_json(path, result | {"summary": summarised(result["rows"])})
    return result | {"summary": summarised(result["rows"])}


def _profile(path: Path, model: Any, tokenizer: Any, options: argparse.Namespace) -> Profile:
    """The profile next to the result, where it is of this model and text; else a fresh one."""
    texts = texts_by_kind(load_texts(options.calibration))
    config = ProfileConfig(length=options.length, windows=options.calibration_windows)
    if path.exists():
        profile = Profile.load(path)
        profile.check(model)
        if profile.calibration["sha256"] == text_sha256(next(iter(texts.values()))):
            return profile
    return profile_to_file(path, model, tokenizer, texts, config, show_progress=True)


if __name__ == "__main__":
    raise SystemExit(main())

"""`geosparse demo`."""

from __future__ import annotations

from pathlib import Path

from ...utils.console import whole
from .shared import DEFAULT_MODEL, MODEL_HELP, TEXT_HELP, Add, Options, mention_missing_kernels, show

WHAT = "the whole chain on a small real model, with a report"
EXAMPLE = "--out demo"


def arguments(add: Add) -> None:
    """The flags."""
    add("--out", type=Path, required=True, help="folder for profile, plan, result.json and report.html")
    add("--model", default=DEFAULT_MODEL, help=MODEL_HELP)
    add(
        "--calibration",
        default="pydoc:calibration",
        help=f"text to profile on: {TEXT_HELP} (default: pydoc:calibration)",
    )
    add("--text", default="pydoc:test", help=f"text to score on: {TEXT_HELP} (default: pydoc:test)")
    add("--length", type=whole(8), default=1024, help="tokens per window (1024)")
    add("--windows", type=whole(1), default=4, help="windows for the profile and for each score (4)")


def run(options: Options) -> None:
    """Profile, plan, score and report."""
    from ...profile.profiler import ProfileConfig
    from ..demo import demo_text, run_demo

    mention_missing_kernels("cpu")
    result = run_demo(
        options.out,
        options.model,
        options.calibration,
        options.text,
        ProfileConfig(length=options.length, windows=options.windows),
        options.windows,
        show_progress=True,
    )
    show(options, result, demo_text(result, options.out))

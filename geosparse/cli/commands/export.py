"""`geosparse export`."""

from __future__ import annotations

from pathlib import Path

from .shared import Add, Options, show

WHAT = "a plan in a format that others read"
EXAMPLE = "plan.json --to csv --out plan.csv"


def arguments(add: Add) -> None:
    """The flags."""
    add("plan", type=Path, help="plan from `geosparse plan`")
    add("--to", required=True, metavar="FORMAT", help="csv, hf (a model's folder), kvpress, duo-attention")
    add("--out", type=Path, required=True, help="file to write; a folder for hf and duo-attention")


def run(options: Options) -> None:
    """Write the plan, and say what the format cannot hold."""
    from ...artifacts.plan import Plan
    from ...integrations.export import export_plan

    files, note = export_plan(Plan.load(options.plan), options.to, options.out)
    names = [str(file) for file in files]
    show(options, {"format": options.to, "files": names, "note": note}, f"Wrote {' and '.join(names)}.\n{note}")

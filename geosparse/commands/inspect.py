"""`geosparse inspect`."""

from __future__ import annotations

from pathlib import Path

from .shared import Add, Options, show

WHAT = "what is in a plan or profile"
EXAMPLE = "plan.json"


def arguments(add: Add) -> None:
    """The flags."""
    add("artifact", type=Path, help="a plan (.json) or profile (.safetensors)")
    add("--html", type=Path, metavar="FILE", help="also write it as one HTML page with maps of its heads")


def run(options: Options) -> None:
    """Say what the file holds, and draw it where asked."""
    from ..inspection import describe, describe_plan, describe_profile, is_profile

    if options.html is None:
        data, text = describe(options.artifact)
        return show(options, data, text)
    if is_profile(options.artifact):
        from ..profile import Profile
        from ..profile_page import write_profile_page

        profile = Profile.load(options.artifact)
        write_profile_page(options.html, profile)
        data, text = describe_profile(profile)
    else:
        from ..plan import Plan
        from ..plan_page import write_plan_page

        plan = Plan.load(options.artifact)
        write_plan_page(options.html, plan)
        data, text = describe_plan(plan)
    show(options, data | {"html": str(options.html)}, f"{text}\nWrote {options.html}.")

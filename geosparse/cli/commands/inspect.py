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
    add("--envelopes", action="store_true", help="bounds on P, R, F of a profile's heads by their fits, as in --html")


def run(options: Options) -> None:
    """Say what the file holds, and draw it where asked."""
    from ...reports.terminal import describe_plan, describe_profile, is_profile

    if is_profile(options.artifact):
        from ...artifacts.profile import Profile
        from ...reports.bands import bands
        from ...reports.heads import assumptions
        from ...reports.profile import write_profile_page

        profile = Profile.load(options.artifact)
        wanted = options.envelopes or options.html is not None
        fitted = assumptions(profile)[1] is not None
        measured_bands = bands(profile, show_progress=True) if wanted and fitted else None
        if options.html is not None:
            write_profile_page(options.html, profile, measured_bands)
        data, text = describe_profile(profile, measured_bands)
    else:
        from ...artifacts.plan import Plan
        from ...reports.plan import write_plan_page

        plan = Plan.load(options.artifact)
        if options.html is not None:
            write_plan_page(options.html, plan)
        data, text = describe_plan(plan)
    if options.html is not None:
        data, text = data | {"html": str(options.html)}, f"{text}\nWrote {options.html}."
    show(options, data, text)

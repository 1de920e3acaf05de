"""`geosparse plan`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import GeosparseError
from ...ops.selectors import AUTO, ECONOMICAL, EXACT, SELECTORS
from ...ops.tails import DEFAULT_TAIL, FAMILY_MEANING, TAILS
from ...plan.policies import DEFAULT_POLICY, POLICIES
from ...utils.bounds import MAX_BYTES, MAX_TOLERANCE
from ...utils.console import number, say, whole
from ...utils.files import check_writable
from .shared import DEFAULT_MODEL, MODEL_HELP, TEXT_HELP, Add, Options, listed, mention_missing_kernels, show

if TYPE_CHECKING:
    from ...artifacts.plan import Plan
    from ...artifacts.profile import Profile

WHAT = "choose how many tokens each head keeps"
EXAMPLE = (
    "p.safetensors --mean-keep 32 --policy fisher --tail centroid --out plan.json\n"
    "  geosparse plan --diff plan.json other.json"
)
PLANNING = ("policy", "tail", "seed", "density", "length", "selector", "share_kv")
"""Options that `make_plan` takes under the same name, where given."""
BESIDE_DIFF = {"command", "run", "rest", "json", "diff"}


def arguments(add: Add) -> None:
    """The flags."""
    add("profile", type=Path, nargs="?", help="profile from `geosparse profile`")
    add("--mean-keep", type=number(least=1), help="tokens kept per head, on average")
    add("--density", type=number(above=0, most=1), help="instead of --mean-keep: the same as a fraction of the length")
    add(
        "--bytes",
        type=number(above=0, most=MAX_BYTES),
        help="instead of --mean-keep: bytes that a decode step reads of the cache, modelled",
    )
    add(
        "--tolerance",
        type=number(above=0, most=MAX_TOLERANCE),
        help="instead: the smallest budget within this relative loss increase, e.g. 0.01",
    )
    add("--model", help=f"for --tolerance, the model to measure: {MODEL_HELP}")
    add("--text", help=f"for --tolerance, text to search on (pydoc:planning): {TEXT_HELP}")
    add("--verify-text", help="for --tolerance, text to verify on, used for nothing else (pydoc:test)")
    add("--windows", type=whole(1), help="for --tolerance, windows to search on, and twice as many to verify (8)")
    add("--length", type=whole(1), help="context to plan for, tokens (the longest of the profile)")
    selectors = listed(SELECTORS, ECONOMICAL, f"default, where its measured errors are those of {EXACT}")
    add("--selector", help=f"how tokens are found: {selectors}, or {AUTO} (with --bytes)")
    add("--share-kv", action="store_true", default=None, help="the heads of one KV group keep the same tokens")
    add("--robust", action="store_true", default=None, help="hold on every kind of text that the profile saw (default)")
    add("--specialised", action="store_true", default=None, help="best on the text that was given to the profile")
    add("--policy", help=f"how the budget is divided among heads: {listed(POLICIES, DEFAULT_POLICY)}")
    add("--tail", help=f"what stands for the rest: {listed((*TAILS, *FAMILY_MEANING), DEFAULT_TAIL)}; {_families()}")
    add("--seed", type=whole(0), help="seed of the controls (0)")
    add("--out", type=Path, help="plan to write, .json")
    add("--diff", type=Path, nargs=2, metavar="PLAN", help="make no plan: how do two plans for one model differ")


def _families() -> str:
    return "; ".join(f"{name}: {meaning}" for name, meaning in FAMILY_MEANING.items())


def run(options: Options) -> None:
    """Make a plan and write it, or compare two."""
    from ...artifacts.profile import Profile
    from ...plan.make_plan import make_plan
    from ...reports.terminal import describe_plan

    if options.diff is not None:
        return _diff(options)
    for name, given in (("PROFILE", options.profile), ("--out", options.out)):
        if given is None:
            raise GeosparseError(f"geosparse plan needs {name}: geosparse plan PROFILE --mean-keep 32 --out plan.json.")
    chosen = {name: value for name in PLANNING if (value := getattr(options, name)) is not None}
    if options.robust and options.specialised:
        raise GeosparseError("--robust and --specialised exclude each other: give one of the two.")
    chosen["robust"] = not options.specialised
    profile = Profile.load(options.profile)
    ran: dict[str, str | None] = {"path": None, "path_reason": "no model was run"}
    if options.tolerance is None:
        plan = make_plan(profile, options.mean_keep, bytes_read=options.bytes, **chosen)
    else:
        plan, ran = _within_tolerance(options, profile, chosen)
    plan.save(options.out)
    data, text = describe_plan(plan)
    data |= ran
    show(options, data | {"out": str(options.out)}, f"{text}\nWrote {options.out}.")


def _within_tolerance(options: Options, profile: Profile, chosen: dict[str, Any]) -> tuple[Plan, dict[str, str | None]]:
    """The plan, and what served the attention while it was searched for."""
    from ...hf.loading import load_model
    from ...measure.loss import served
    from ...measure.tolerance import plan_within
    from ...plan.make_plan import make_plan
    from ...text import load_texts, token_windows

    if any(getattr(options, name) is not None for name in ("mean_keep", "density", "bytes")):
        raise GeosparseError("--tolerance finds the budget itself: leave out --mean-keep, --density and --bytes.")
    check_writable(options.out)
    defaults: dict[str, Any] = {
        "text": "pydoc:planning",
        "verify_text": "pydoc:test",
        "model": DEFAULT_MODEL,
        "length": profile.length,
        "windows": 8,
    }
    request = {
        name: default if (value := getattr(options, name)) is None else value for name, default in defaults.items()
    }
    search, verify = load_texts(request["text"]), load_texts(request["verify_text"])
    if search == verify:
        raise GeosparseError("--text and --verify-text are the same: verify on text that was not searched on.")
    model, tokenizer = load_model(request["model"])
    mention_missing_kernels("cpu")
    profile.check(model)
    length, count = request["length"], request["windows"]
    plan = plan_within(
        model,
        lambda mean_keep: make_plan(profile, mean_keep, **chosen),
        options.tolerance,
        token_windows(tokenizer, search, length, count),
        token_windows(tokenizer, verify, length, 2 * count),
        show_progress=True,
        say=say,
    )
    return plan, dict(served(model, plan))


def _diff(options: Options) -> None:
    from ...artifacts.plan import Plan
    from ...reports.comparison import compare_plans, describe_comparison

    for name, value in vars(options).items():
        if value is not None and name not in BESIDE_DIFF:
            flag = "a profile" if name == "profile" else f"--{name.replace('_', '-')}"
            raise GeosparseError(f"--diff compares two plans and makes none: leave out {flag}.")
    data = compare_plans(*map(Plan.load, options.diff))
    show(options, data, describe_comparison(data))

"""`geosparse score`."""

from __future__ import annotations

from pathlib import Path

from ...utils.console import say, whole
from .shared import TEXT_HELP, Add, Options, add_model, load, load_plan, show

WHAT = "loss of the model, dense and sparse, on the same tokens"
EXAMPLE = "smollm2-135m --plan plan.json --text pydoc:test --length 1024 --windows 8"


def arguments(add: Add) -> None:
    """The flags."""
    add_model(add)
    add("--plan", type=Path, help="plan to apply; without it only the dense model is scored")
    add("--text", default="pydoc:test", help=f"{TEXT_HELP} (default: pydoc:test)")
    add("--length", type=whole(2), default=1024, help="tokens per window (1024)")
    add("--windows", type=whole(1), default=8, help="windows, evenly spaced over the text (8)")


def run(options: Options) -> None:
    """Score the same windows with and without the plan."""
    from ...measure.loss import check_windows, score
    from ...profile.familiar import unfamiliar
    from ...reports.terminal import describe_score
    from ...text import load_texts, token_windows

    plan = load_plan(options.plan)
    texts = load_texts(options.text)
    model, tokenizer = load(options)
    if plan is not None:
        plan.check(model)
    windows = token_windows(tokenizer, texts, options.length, options.windows)
    notes = list(check_windows(windows, options.windows))
    if plan is not None and (warning := unfamiliar(model, plan, windows[len(windows) // 2])) is not None:
        notes.append(warning)
        say(f"geosparse: warning: {warning}")
    result = score(model, plan, windows, show_progress=True) | {"text": options.text, "notes": notes}
    show(options, result, describe_score(result))

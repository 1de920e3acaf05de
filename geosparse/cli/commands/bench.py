"""`geosparse bench`."""

from __future__ import annotations

from pathlib import Path

from ...utils.console import whole
from .shared import TEXT_HELP, Add, Options, add_model, load, load_plan, show

WHAT = "speed of prefill and decode, dense against sparse"
EXAMPLE = "smollm2-135m --plan plan.json --context 4096 --new-tokens 32"


def arguments(add: Add) -> None:
    """The flags."""
    add_model(add)
    add("--plan", type=Path, help="plan to apply; without it only dense attention is timed, from both caches")
    add("--context", type=whole(2), default=4096, help="tokens of prompt (4096)")
    add("--new-tokens", type=whole(1), default=32, help="decode steps to time (32)")
    add("--text", default="pydoc:test", help=f"{TEXT_HELP} (default: pydoc:test)")


def run(options: Options) -> None:
    """Time both in one run, behind a correctness gate."""
    from ...measure.speed import bench
    from ...reports.terminal import describe_bench
    from ...text import load_texts, token_windows

    plan = load_plan(options.plan)
    texts = load_texts(options.text)
    model, tokenizer = load(options)
    if plan is not None:
        plan.check(model)
    prompt = token_windows(tokenizer, texts, options.context, 1)[0]
    result = bench(model, plan, prompt, options.new_tokens, show_progress=True)
    show(options, result, describe_bench(result))

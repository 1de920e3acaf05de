"""`geosparse bench`."""

from __future__ import annotations

from pathlib import Path

from .shared import TEXT_HELP, Add, Options, add_model, load, show

WHAT = "speed of prefill and decode, dense against sparse"
EXAMPLE = "smollm2-135m --plan plan.json --context 4096 --new-tokens 32"


def arguments(add: Add) -> None:
    """The flags."""
    add_model(add)
    add("--plan", type=Path, required=True, help="plan to apply")
    add("--context", type=int, default=4096, help="tokens of prompt (4096)")
    add("--new-tokens", type=int, default=32, help="decode steps to time (32)")
    add("--text", default="pydoc:test", help=TEXT_HELP)


def run(options: Options) -> None:
    """Time both in one run, behind a correctness gate."""
    from ..bench import bench
    from ..inspection import describe_bench
    from ..plan import Plan
    from ..text import load_texts, token_windows

    plan = Plan.load(options.plan)
    texts = load_texts(options.text)
    model, tokenizer = load(options)
    plan.check(model)
    prompt = token_windows(tokenizer, texts, options.context, 1)[0]
    result = bench(model, plan, prompt, options.new_tokens, show_progress=True)
    show(options, result, describe_bench(result))

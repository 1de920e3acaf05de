"""`geosparse generate`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...errors import GeosparseError
from ...utils.console import say, whole
from ...utils.files import MAX_COUNT
from .shared import Add, Options, add_model, load, load_plan, show

WHAT = "write text with the sparse model"
EXAMPLE = "smollm2-135m --plan plan.json --prompt 'Why is the sky blue?' --chat"
DENSE_HELP = (
    "use dense attention below N tokens; 'measured' takes the break-even found by `geosparse doctor --calibrate`"
)


def arguments(add: Add) -> None:
    """The flags."""
    add_model(add)
    add("--plan", type=Path, help="plan to apply; without it the dense model writes")
    add("--prompt", required=True, help="text to continue; - reads standard input")
    add("--chat", action="store_true", help="put the prompt into the tokenizer's chat template")
    add("--max-new-tokens", type=whole(1), default=128, help="largest number of tokens to write (128)")
    add("--prefill", default="exact", help="the prompt: exact (each token by the plan, default), dense or block")
    add("--dense-below", type=_tokens_or_measured, default=0, help=DENSE_HELP)


def run(options: Options) -> None:
    """Write as the tokens come; what was kept goes to standard error."""
    from ..generate import generate

    plan = load_plan(options.plan)
    model, tokenizer = load(options)
    prompt = _read_prompt() if options.prompt == "-" else options.prompt
    serving = {"prefill": options.prefill, "dense_below": options.dense_below}
    result = generate(
        model, tokenizer, prompt, plan, options.max_new_tokens, chat=options.chat, stream=not options.json, **serving
    )
    if options.json:
        show(options, result, "")
    elif plan is not None:
        say("\n".join([f"[{result['new_tokens']} tokens, density {result['density']:.4f}]", *result["notes"]]))


def _read_prompt() -> str:
    if sys.stdin is None:
        raise GeosparseError("Standard input is closed: give the prompt after --prompt.")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        encoding = (getattr(sys.stdin, "encoding", None) or "utf-8").upper()
        raise GeosparseError(f"Standard input is not {encoding} text: give a prompt in {encoding}.") from error


def _tokens_or_measured(text: str) -> int | str:
    if text == "measured":
        return text
    if text.isdecimal() and len(text) <= len(str(MAX_COUNT)) and int(text) <= MAX_COUNT:
        return int(text)
    raise argparse.ArgumentTypeError(f"a whole number of tokens up to {MAX_COUNT}, or measured, found {text!r}")

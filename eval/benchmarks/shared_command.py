"""What the commands on one model and one text share: their flags, JSON files, and errors as one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import geosparse as gs
from geosparse.ops import SELECTORS, TAILS
from geosparse.utils.console import Parser, json_text, run_command, whole
from geosparse.utils.files import check_writable, write_json

from .prompt import about

Options = argparse.Namespace
Add = Callable[..., Any]


class Finding(NamedTuple):
    """What a study found: the name of its file in the folder `--out`, what goes into it, and what is printed (the same,
    where nothing else is said)."""

    file: str
    result: dict[str, Any]
    text: str | None = None


def add_context(add: Add, context: int, new_tokens: int) -> None:
    """The flags of a prompt that is continued."""
    add("--context", type=whole(2), default=context, help=f"tokens of the prompt ({context})")
    add("--new-tokens", type=whole(1), default=new_tokens, help=f"decode steps ({new_tokens})")


def add_uniform(add: Add, mean_keep: int, selector: str) -> None:
    """The flags of a plan that treats all heads alike."""
    add("--mean-keep", type=whole(1), default=mean_keep, help=f"N of every head ({mean_keep})")
    add("--selector", choices=SELECTORS, default=selector, help=f"how tokens are found ({selector})")
    add("--tail", choices=TAILS, default="centroid", help="what stands for the rest (centroid)")


def uniform(model: Any, options: Options) -> gs.Plan:
    """The plan that `add_uniform` asks for."""
    return gs.Plan.uniform(model, options.mean_keep, options.tail, selector=options.selector)


def facts(options: Options, *names: str) -> dict[str, Any]:
    """Flags that a result repeats."""
    return {name: getattr(options, name) for name in names}


def command(
    module: str,
    name: str,
    what: str | None,
    flags: Callable[[Add], None],
    study: Callable[[Options, Any, Any], Iterator[Finding]],
    arguments: list[str] | None,
    text: str | None = None,
) -> int:
    """Measure, print, write; returns the exit code.

    Args:
        module: What follows `python -m`.
        name: Of the study, in its schema.
        what: Its docstring.
        flags: Adds its own flags.
        study: From the options, the model in fp32 and its tokenizer to what is written, as soon as it is known.
        arguments: The command line.
        text: The text that is taken where none is given.
    """
    description = (what or "").splitlines()[0]
    parser = Parser(prog=f"python -m {module}", description=description)
    parser.add_argument("model", help="as for `geosparse profile`")
    parser.add_argument("--text", required=text is None, default=text, help="what is read: a file, or pydoc:...")
    flags(parser.add_argument)
    parser.add_argument("--out", type=Path, help="folder for the JSON")

    def run() -> None:
        options = parser.parse_args(arguments)
        if options.out is not None:
            check_writable(options.out / f"{name}.json")
        model, tokenizer = gs.load_model(options.model, dtype="float32")
        for finding in study(options, model, tokenizer):
            result = about(f"geosparse.runtime.{name}/1", options.model, options.text) | finding.result
            if options.out is not None:
                write_json(options.out / finding.file, result)
            print(json_text(result) if finding.text is None else finding.text)

    return run_command(module, run)

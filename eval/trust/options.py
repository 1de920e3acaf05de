"""`python -m eval.trust.options`: every numeric option of every command times numbers that none of them can mean.

The options are read from the parsers themselves: those of `geosparse`, of lm-eval's own flags, and of the commands of
`eval`. Each is given 0, -1, NaN, 1e30 and a few more in a folder of its own, and has to be refused with one sentence
that names the option, exit code 2, and nothing written; `MEANT` lists the values that are meant.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from geosparse.cli.main import build_parser
from geosparse.cli.main import main as geosparse
from geosparse.utils.console import Parser, json_text, run_command
from geosparse.utils.files import write_json
from geosparse.utils.provenance import versions

SCHEMA = "geosparse.trust.options/1"
VALUES = ("0", "-1", "nan", "1e30", "inf", "", "abc", str(10**30))
MEANT = {
    ("geosparse profile", "--seed", "0"),
    ("geosparse plan", "--seed", "0"),
    ("geosparse generate", "--dense-below", "0"),
    ("geosparse lm-eval", "--num_fewshot", "0"),
    ("geosparse lm-eval", "--seed", "0"),
    ("eval.trust.crashes", "--seed", "0"),
    ("eval.trust.mutation", "--seed", "0"),
    *((f"eval.studies.geometry.{study}", "--seed", "0") for study in ("damage", "envelopes", "findings", "regimes")),
    ("eval.studies.geometry.regimes", "--draws", "0"),
}
"""Command, option and value, where the value has a meaning that its help says."""
ENTRIES = {
    "eval.benchmarks.profile_cost": "main",
    "eval.studies.geometry.damage": "run",
    "eval.studies.geometry.envelopes": "options_of",
    "eval.studies.geometry.findings": "run",
    "eval.studies.geometry.regimes": "options_of",
    "eval.gpu": "main",
    "eval.studies.planner": "main",
    "eval.studies.robustness": "main",
    "eval.report": "main",
    "eval.run": "main",
    "eval.studies.runtime.drift": "main",
    "eval.benchmarks.engines.llama_cpp": "main",
    "eval.benchmarks.memory": "main",
    "eval.benchmarks.scoring_time": "main",
    "eval.studies.runtime.selectors": "main",
    "eval.speed": "main",
    "eval.trust.architectures": "main",
    "eval.trust.crashes": "main",
    "eval.trust.gradients": "main",
    "eval.trust.load": "main",
    "eval.trust.mutation": "main",
    "eval.trust.options": "main",
    "eval.trust.trace": "main",
}
"""The commands of `eval`, and what takes their command line."""
LM_EVAL_TEXTS = ("--batch_size",)
"""Numbers that lm-eval reads as text."""


class OptionCase(NamedTuple):
    """One option of one command, with a value."""

    command: str
    option: str
    value: str
    words: list[str]  # the command line, after the command


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; exit code 1 where an option is not refused as it should be."""
    return run_command("eval.trust.options", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = Parser(prog="python -m eval.trust.options", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(arguments)
    cases = list(all_cases())
    problems = [problem for case in cases if (problem := fault(case)) is not None]
    named = sorted({(case.command, case.option) for case in cases})
    result = {
        "schema": SCHEMA,
        "commands": len({command for command, _ in named}),
        "options": len(named),
        "values": len(VALUES),
        "cases": len(cases),
        "meant": len(MEANT),
        "problems": problems,
        "provenance": versions(),
    }
    if options.out is not None:
        write_json(options.out, result)
    print(json_text(result), end="")
    return 1 if problems else 0


def all_cases() -> Iterator[OptionCase]:
    """Every numeric option of every command times `VALUES`."""
    for command, parser in parsers().items():
        for action in parser._actions:
            flag = action.option_strings[0] if action.option_strings else ""
            if flag and (is_numeric(action) or (command == "geosparse lm-eval" and flag in LM_EVAL_TEXTS)):
                for value in VALUES:
                    # In one word, or argparse would take -1 and -inf for flags.
                    yield OptionCase(command, flag, value, [*required(command, parser, action), f"{flag}={value}"])


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, by its name."""
    known: dict[str, argparse.ArgumentParser] = {}
    for action in build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            known |= {f"geosparse {name}": parser for name, parser in action.choices.items()}
    for command, parser in lm_eval_parsers().items():
        for action in parser._actions:
            if action.option_strings and action.dest not in {"help", "model", "device"}:
                known[command]._add_action(_long_first(action))
    return known | {module: captured(module, entry) for module, entry in ENTRIES.items()}


def _long_first(action: argparse.Action) -> argparse.Action:
    action.option_strings = sorted(action.option_strings, key=len, reverse=True)
    return action


def lm_eval_parsers() -> dict[str, argparse.ArgumentParser]:
    """lm-eval's own flags, which `geosparse lm-eval` passes on; nothing where it is not installed."""
    try:
        from lm_eval._cli.run import Run
    except ImportError:
        return {}
    commands = argparse.ArgumentParser().add_subparsers()
    Run.create(commands)
    return {"geosparse lm-eval": commands.choices["run"]}


class _Captured(BaseException):
    """Carries a parser out of the command that was about to use it."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def captured(module: str, entry: str) -> argparse.ArgumentParser:
    """The parser that a command makes for itself."""
    with _parse_args_replaced():
        try:
            getattr(import_module(_home(module)), entry)([])
        except _Captured as caught:
            return caught.parser
    raise AssertionError(f"{module} parses its arguments with another class than console.Parser")


@contextmanager
def _parse_args_replaced() -> Iterator[None]:
    def give_away(self: Parser, *_: Any) -> argparse.Namespace:
        raise _Captured(self)

    Parser.parse_args = give_away  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del Parser.parse_args  # argparse's own is below it


def _home(module: str) -> str:
    return (
        f"{module}.__main__"
        if Path(__file__).parents[2].joinpath(*module.split("."), "__main__.py").exists()
        else module
    )


def is_numeric(action: argparse.Action) -> bool:
    """Whether an option takes numbers, by what its type makes of some."""
    if not callable(action.type):
        return False
    for text in ("2", "64", "0.5", "2,4", "1,2,3,4"):
        try:
            value = action.type(text)
        except (argparse.ArgumentTypeError, TypeError, ValueError):
            continue
        values = value if isinstance(value, list | tuple) else [value]
        if values and all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
            return True
    return False


def required(command: str, parser: argparse.ArgumentParser, but: argparse.Action) -> list[str]:
    """Words for what the command cannot do without."""
    words = [] if command != "geosparse lm-eval" else ["model", "--tasks=arc_easy"]
    for action in parser._actions:
        if action is but or not action.required or action.dest == "tasks":
            continue
        value = str(next(iter(action.choices))) if action.choices else "given"
        count = action.nargs if isinstance(action.nargs, int) else 1
        words += [*action.option_strings[:1], *[value] * count]
    return words


def fault(case: OptionCase) -> str | None:
    """What is wrong with how the command takes the value; None where nothing is."""
    shown = f"{case.command} {' '.join(case.words)}"
    if (case.command, case.option, case.value) in MEANT:
        accepted = _accepts(case)
        return None if accepted else f"{shown}: refused, though the value has a meaning"
    code, out, err = run_in_folder(case)
    sentences = err.rstrip("\n").split("\n")
    if code != 2:
        return f"{shown}: exit code {code}, {sentences[-1][:100]}"
    if len(sentences) != 1 or ": error: " not in err or not err.endswith((".\n", "?\n")):
        return f"{shown}: not one sentence but {err[:200]!r}"
    if case.option not in err:
        return f"{shown}: the option is not named in {err[:200]!r}"
    return f"{shown}: something on standard output, {out[:100]!r}" if out else None


def _accepts(case: OptionCase) -> bool:
    parser = parsers()[case.command]
    try:
        with redirect_stderr(io.StringIO()):
            parser.parse_args([word for word in case.words if word != "--tasks=arc_easy"])
    except SystemExit:
        return False
    if case.command != "geosparse lm-eval":
        return True
    from geosparse.integrations.lm_eval import parse_arguments

    parse_arguments([word for word in case.words if word != "model"])
    return True


def run_in_folder(case: OptionCase) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command in an empty folder, where nothing may be left."""
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(out),
        redirect_stderr(err),
        _paths_in(folder, case) as at,
    ):
        try:
            code = (
                geosparse([*case.command.split()[1:], *at]) if case.command.startswith("geosparse ") else _own(case, at)
            )
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        left = sorted(os.listdir(folder))
    return (
        (code, out.getvalue(), err.getvalue()) if not left else (code, out.getvalue(), f"{err.getvalue()}left {left}\n")
    )


def _own(case: OptionCase, words: Sequence[str]) -> int:
    code = getattr(import_module(_home(case.command)), ENTRIES[case.command])(list(words))
    return code if isinstance(code, int) else 0


@contextmanager
def _paths_in(folder: str, case: OptionCase) -> Iterator[list[str]]:
    """The command's words with every name that it might write below `folder`."""
    yield [str(Path(folder, "given")) if word == "given" else word for word in case.words]


if __name__ == "__main__":
    sys.exit(main())

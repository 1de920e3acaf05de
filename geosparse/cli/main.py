"""The command line: wiring only. Exit code 0 is success, 2 a mistake of the user's, 1 anything else."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .. import __version__
from ..utils.console import Parser, run_command
from .commands import COMMANDS
from .commands.shared import DEFAULT_MODEL


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # OpenMP threads that spin for long stall every other process of a small machine, threads that sleep at once wake
    # too late for a kernel of 100 us; a few microseconds of spinning do neither. Must precede the import of torch.
    if "OMP_WAIT_POLICY" not in os.environ and "torch" not in sys.modules:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    try:
        return run_command("geosparse", lambda: _run(arguments))
    except _Ended as end:
        return 128 + end.number


def _run(arguments: list[str] | None) -> None:
    with _cleaned_up():
        options = _parse(arguments)
        options.run(options)


class _Ended(BaseException):
    """A signal that asks the process to end: whatever is half done is removed on the way out."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _cleaned_up() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as an interrupt does; a second one ends it at once."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Ended(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: signal.signal(n, end) for n in numbers if signal.getsignal(n) is signal.SIG_DFL}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = build_parser()
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    if tokens[:1] == ["lm-eval"] and tokens[1:2] and tokens[1].startswith("-"):
        # Else argparse would take the value of a flag that it does not know, such as a task, for the model.
        tokens.insert(1, DEFAULT_MODEL)
    options, rest = parser.parse_known_args(tokens)
    if rest and options.command != "lm-eval":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest and not rest[0].startswith("-"):
        parser.error(f"the model comes first, before the flags: geosparse lm-eval MODEL ..., found {rest[0]!r}")
    options.rest = rest
    return options


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(prog="geosparse", description="Per-head sparse attention, planned from measured geometry.")
    parser.add_argument("--version", action="version", version=f"geosparse {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    for name, command in COMMANDS.items():
        example = f"example:\n  geosparse {name} {command.EXAMPLE}"
        subparser = commands.add_parser(name, help=command.WHAT, description=command.WHAT, epilog=example)
        subparser.add_argument("--json", action="store_true", help="print the result as JSON")
        subparser.set_defaults(run=command.run)
        command.arguments(subparser.add_argument)
    return parser

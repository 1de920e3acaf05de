"""What every command line shares: its parser, its output, and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, NoReturn

from ..errors import GeosparseError
from .bounds import number_fault, whole_fault
from .files import MAX_COUNT, dump_json

CONTROLS = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\ufffd")
"""All control characters but the tab and the end of a line."""
STOPPED = 130


class Parser(argparse.ArgumentParser):
    """One sentence and exit code 2 on a wrong flag; no abbreviations, so that lm-eval's flags stay its own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Say what is wrong; of a number without argparse's own words."""
        message = re.sub(r"^argument (\S+?)(?:/\S+)?: must ", r"\1 must ", message)
        for kind, words in (("int", "whole number"), ("float", "number")):
            message = re.sub(rf"^argument (\S+): invalid {kind} value: ", rf"\1 must be a {words}, found ", message)
        self.exit(2, f"{self.prog}: error: {printable(' '.join(message.split()))}; see `{self.prog} --help`.\n")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End, after what was printed."""
        if sys.stdout is not None:
            sys.stdout.flush()
        if message:
            say(message.rstrip("\n"))
        raise SystemExit(status)


def whole(least: int, most: int = MAX_COUNT) -> Callable[[str], int]:
    """The type of an option that is a whole number from `least` to `most`."""

    def parse(text: str) -> int:
        return _parse_whole(text, least, most)

    parse.__name__ = "int"
    return parse


def wholes(least: int, most: int = MAX_COUNT) -> Callable[[str], tuple[int, ...]]:
    """The type of an option that is several of them, with commas between them."""

    def parse(text: str) -> tuple[int, ...]:
        try:
            return tuple(_parse_whole(part, least, most) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"whole numbers with commas between them, found {text!r}") from None

    return parse


def number(
    *, least: float | None = None, above: float | None = None, most: float = MAX_COUNT
) -> Callable[[str], float]:
    """The type of an option that is a finite number within bounds (see `bounds.check_number`)."""

    def parse(text: str) -> float:
        value = float(text)
        if reason := number_fault(value, least, above, most):
            raise argparse.ArgumentTypeError(f"{reason}, found {text}")
        return value

    parse.__name__ = "float"
    return parse


def _parse_whole(text: str, least: int, most: int) -> int:
    value = int(text)
    if reason := whole_fault(value, least, most):
        raise argparse.ArgumentTypeError(f"{reason}, found {text}")
    return value


def printable(text: str) -> str:
    """`text` without what a terminal would obey: names in a file from elsewhere may hold escape sequences."""
    return text.translate(CONTROLS)


def json_text(data: object) -> str:
    """`dump_json`; with escapes for all letters beyond ASCII where standard output's encoding lacks one of them."""
    text = dump_json(data)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return dump_json(data, ascii_only=True)
    return text


def say(text: str) -> None:
    """Print on standard error, where there is one."""
    if sys.stderr is not None:
        with suppress(OSError, ValueError):  # nobody reads it
            print(text, file=sys.stderr, flush=True)


@contextmanager
def output_of_any_encoding() -> Iterator[None]:
    """Inside, letters that standard output's encoding lacks are printed as escapes such as \\u4e2d."""
    stream = sys.stdout
    if getattr(stream, "closed", False):
        with redirect_stdout(None):
            yield
        return
    before = getattr(stream, "errors", None)
    if before not in ("strict", "surrogateescape") or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with suppress(OSError, ValueError):  # closed meanwhile, or nobody reads it
            stream.reconfigure(errors=before)


IMPORT_TALKERS = ("torchao", "torch.utils._pytree")
"""Loggers of libraries that warn on standard error about themselves when transformers imports them."""


def run_command(name: str, command: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a command and turn what ends it into one sentence and an exit code.

    Args:
        name: Of the program, before the sentence.
        command: Returns an exit code; None is 0.
        interrupted: What to say on Ctrl-C.

    Returns:
        0 or what `command` returned; 2 after a mistake of the user's, 130 after Ctrl-C, 1 after a failure of the
        system, such as an output that nobody reads.
    """
    for talker in IMPORT_TALKERS:
        logging.getLogger(talker).setLevel(logging.ERROR)
    try:
        with output_of_any_encoding():
            code = command() or 0
            if sys.stdout is not None:
                sys.stdout.flush()
        return code
    except GeosparseError as error:
        say(f"{name}: error: {printable(' '.join(str(error).split()))}")
        return 2
    except KeyboardInterrupt:
        say(f"{name}: {interrupted}")
        return STOPPED
    except OSError as error:
        _give_up_output()
        if not isinstance(error, BrokenPipeError):
            where = error.filename or "standard output"
            say(f"{name}: error: Cannot use {where}: {error.strerror or error}.")
        return 1


def _give_up_output() -> None:
    """Where standard output is broken, what is still buffered would fail once more, with a traceback, when Python
    ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError, AttributeError):  # not one of the system's files
            handle = sys.stdout.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, handle)
            os.close(null)

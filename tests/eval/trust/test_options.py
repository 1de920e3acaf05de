"""Every numeric option of every command refuses what it cannot mean; the list comes from the parsers themselves."""

import argparse
import sys
from pathlib import Path

import pytest

from eval.trust import options
from eval.trust.options import ENTRIES, MEANT, OptionCase, fault, parsers

from ...test_layout import STUDIES

CASES = list(options.all_cases())
COMMANDS = sorted({case.command for case in CASES})


def looks_numeric(action):
    """Whether an option's default says that its text is read as numbers later: it would escape `is_numeric`."""
    default = action.default
    values = default if isinstance(default, list | tuple) else [default]
    return any(isinstance(value, str) and value.replace(",", "").replace(".", "").isdigit() for value in values) or any(
        isinstance(value, int | float) and not isinstance(value, bool) for value in values
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_numbers_that_mean_nothing_are_refused(command):
    if command == "geosparse demo":
        pytest.importorskip("matplotlib", reason="matplotlib is not installed: demo stops before anything else")
    assert [found for case in CASES if case.command == command and (found := fault(case)) is not None] == []


def test_no_command_and_no_option_escapes():
    runnable = {path for path in STUDIES.rglob("*.py") if '__name__ == "__main__"' in path.read_text("utf-8")}
    names = {".".join(path.relative_to(STUDIES.parent).with_suffix("").parts) for path in runnable}
    assert {name.removesuffix(".__main__") for name in names} == set(ENTRIES)
    for command, parser in parsers().items():
        tried = {case.option for case in CASES if case.command == command}
        escaped = [
            action.option_strings
            for action in parser._actions
            if looks_numeric(action) and not tried & set(action.option_strings)
        ]
        assert escaped == [], command
    assert {(case.command, case.option, case.value) for case in CASES} >= MEANT


def test_an_option_that_takes_everything_is_noticed(monkeypatch):
    def careless(add):
        add("--length", type=int, default=4)
        add("--share", type=float)

    monkeypatch.setattr(options.build_parser.__globals__["COMMANDS"]["doctor"], "arguments", careless)
    monkeypatch.setattr(options.build_parser.__globals__["COMMANDS"]["doctor"], "run", lambda _: None)
    found = [fault(case) for case in options.all_cases() if case.command == "geosparse doctor"]
    assert "geosparse doctor --length=0: exit code 0, " in found
    assert "geosparse doctor --share=nan: exit code 0, " in found


def test_a_command_that_writes_is_noticed(monkeypatch):
    def writes(words):
        Path(words[2]).write_text("half")
        print("geosparse: error: --length must be at least 8, found 0.", file=sys.stderr)
        return 2

    case = OptionCase("geosparse profile", "--length", "0", ["--out", "given", "--length=0"])
    assert fault(case) is None
    monkeypatch.setattr(options, "geosparse", writes)
    assert "left ['given']" in fault(case)


def test_text_that_is_read_as_numbers_later_is_noticed():
    parser = argparse.ArgumentParser()
    assert looks_numeric(parser.add_argument("--lengths", default="2048,8192"))
    assert not looks_numeric(parser.add_argument("--text", default="pydoc:test"))

"""The numbers that C++ knows selectors and tails by are those of the registries."""

import re
from pathlib import Path

import pytest

from geosparse.ops import SELECTORS, cpu
from geosparse.ops.selectors.paged_lowbit import OVERSAMPLE
from geosparse.ops.selectors.sink_recent import SINKS
from geosparse.ops.tails import TailShares

SOURCE, FAST_CALL = (
    (Path(cpu.__file__).parent / "csrc" / name).read_text(encoding="utf-8") for name in ("kernels.cpp", "fast_call.c")
)


def enumerated(name):
    """The words of an enum, in small letters, and their numbers."""
    (body,) = re.findall(rf"enum {name} {{([^}}]*)}}", SOURCE)
    return {word.lower(): int(number) for word, number in re.findall(r"(\w+) = (\d+)", body)}


def test_selectors_have_the_numbers_that_their_entries_declare():
    declared = {name.replace("+", "_"): SELECTORS[name].kernel for name in SELECTORS.built_in}
    assert enumerated("Selector") == {name: number for name, number in declared.items() if number is not None}


def test_the_shares_of_a_tail_lie_in_the_order_of_its_fields():
    (fields,) = re.findall(r"struct Tail {\n  float ([\w, ]+);", SOURCE)
    assert tuple(fields.split(", ")) == TailShares._fields
    lengths = set(re.findall(r"SHARES = (\d+)|tails \+ (\d+) \* head", SOURCE + FAST_CALL))
    assert lengths == {("", str(len(TailShares._fields))), (str(len(TailShares._fields)), "")}


@pytest.mark.parametrize(("name", "number"), [("SINKS", SINKS), ("OVERSAMPLE", OVERSAMPLE)])
def test_constants_are_those_of_the_definitions(name, number):
    assert re.findall(rf"constexpr long {name} = (\d+);", SOURCE) == [str(number)]

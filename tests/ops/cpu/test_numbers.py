"""The numbers that C++ knows selectors and tails by are those of the registries."""

import re
from pathlib import Path

import pytest

from geosparse.ops import SELECTORS, cpu
from geosparse.ops.selectors.paged_lowbit import OVERSAMPLE
from geosparse.ops.selectors.sink_recent import SINKS
from geosparse.ops.tails import TAIL_RULES, TAILS

SOURCE = (Path(cpu.__file__).parent / "csrc" / "kernels.cpp").read_text(encoding="utf-8")


def enumerated(name):
    """The words of an enum, in small letters, and their numbers."""
    (body,) = re.findall(rf"enum {name} {{([^}}]*)}}", SOURCE)
    return {word.lower(): int(number) for word, number in re.findall(r"(\w+) = (\d+)", body)}


def table(name):
    (body,) = re.findall(rf"constexpr float {name}\[\] = {{([^}}]*)}}", SOURCE)
    return [float(number.rstrip("f")) for number in body.split(", ")]


def test_selectors_have_the_numbers_that_their_entries_declare():
    declared = {name.replace("+", "_"): SELECTORS[name].kernel for name in SELECTORS.built_in}
    assert enumerated("Selector") == {name: number for name, number in declared.items() if number is not None}


def test_tails_have_the_numbers_and_parts_of_their_table():
    assert enumerated("Tail") == {name: place for place, name in enumerate(TAILS)}
    assert table("MEAN_PART") == [rule.shares.mean for rule in TAIL_RULES.values()]
    assert table("EVEN_PART") == [rule.shares.kept for rule in TAIL_RULES.values()]


@pytest.mark.parametrize(("name", "number"), [("SINKS", SINKS), ("OVERSAMPLE", OVERSAMPLE)])
def test_constants_are_those_of_the_definitions(name, number):
    assert re.findall(rf"constexpr long {name} = (\d+);", SOURCE) == [str(number)]

"""Colours of plots: ours first, dense grey."""

import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install geosparse[plots]")

from eval.report.figure import COLOURS, FILE, colours


def test_our_policy_comes_first_and_dense_is_grey():
    colour_of = colours(["snapkv", "dense", "fisher · blend", "snapkv"])
    assert colour_of == {"fisher · blend": 0, "snapkv": 1, "dense": COLOURS}
    assert FILE.hues[COLOURS] == FILE.names["muted"]


def test_more_series_than_colours_begin_again():
    assert colours([f"series {number}" for number in range(COLOURS + 1)])[f"series {COLOURS}"] == 0

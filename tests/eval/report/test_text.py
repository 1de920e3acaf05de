"""Numbers in words."""

import pytest

from eval.harness.result import Measurement
from eval.report.text import HEADS, cells, percent


@pytest.mark.parametrize(("share", "text"), [(0.0123, "1.2 %"), (0.5, "50 %"), (0.994, "99 %"), (0.996, "100 %")])
def test_shares_are_percentages_of_two_digits(share, text):
    assert percent(share) == text


def test_what_was_not_measured_is_an_empty_cell():
    blank = dict.fromkeys(("stderr", "density", "difference", "interval", "changed", "mcnemar", "recovery"))
    row = Measurement(task="quiz", metric="acc", variant="dense", value=0.5, samples=8, **blank)
    assert cells(row) == ("quiz", "acc", "dense", "0.5000", "", "8", "", "", "", "")
    assert len(cells(row)) == len(HEADS)

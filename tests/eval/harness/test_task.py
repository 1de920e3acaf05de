"""What every task shares: where texts lie, and means with their standard error."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from eval.harness.task import Column, Metric, Setting, Task
from geosparse.errors import GeosparseError


def test_a_column_is_the_mean_and_its_standard_error() -> None:
    column = Column.of([1.0, 2.0, 6.0])
    assert column.value == 3.0
    assert column.stderr == pytest.approx(math.sqrt(7 / 3))
    assert Column.of([1.0]).stderr is None


def test_texts_lie_below_the_folder_of_data() -> None:
    assert Setting(None, None, Path("texts"), Path("scratch")).text("data:a.txt") == Path("texts/a.txt")
    assert Setting(None, None, None, Path("scratch")).text("pydoc:test") == "pydoc:test"
    with pytest.raises(GeosparseError, match="give --data FOLDER"):
        Setting(None, None, None, Path("scratch")).text("data:a.txt")


def test_finish_gives_metrics_with_their_columns() -> None:
    class Constant(Task):
        kind = "constant"

    task = Constant(None, Setting(None, None, None, Path("scratch")))
    task.metrics = {"nll": Metric("nll", False, main=True)}
    scores = task.finish([{"values": {"nll": 1.0}}, {"values": {"nll": 2.0}}])
    assert scores.metrics == task.metrics
    assert scores.columns["nll"].values == [1.0, 2.0]

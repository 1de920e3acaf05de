"""Samples on disk: only whole lines count."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.harness.samples import Part
from eval.run import main


def records(count: int) -> list[dict[str, object]]:
    return [{"sample": place, "values": {"nll": place / 3}} for place in range(count)]


@given(cut=st.integers(0, 400), more=st.integers(0, 5))
def test_cut_anywhere_it_goes_on(cut: int, more: int, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("part") / "a.jsonl"
    part = Part(path, {"a": 1}, "commit")
    for record in records(4):
        part.append(record)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    again = Part(path, {"a": 1}, "commit")
    assert list(again.records.values()) == records(4)[: len(again.records)]
    for record in records(4)[len(again.records) :]:
        again.append(record)
    assert path.read_bytes() == whole
    assert Part(path, {"a": 1}, "commit").records == {record["sample"]: record for record in records(4)}


def test_another_run_begins_anew_and_commits_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    Part(path, {"a": 1}, "one").append(records(1)[0])
    assert Part(path, {"a": 2}, "one").records == {}
    later = Part(path, {"a": 1}, "two")
    later.append(records(2)[1])
    found = Part(path, {"a": 1}, "three")
    assert sorted(found.records) == [0, 1]
    assert found.notes == ["one", "two"]
    Part(path, {"a": 2}, "one").append(records(1)[0])
    assert Part(path, {"a": 1}, "one").records == {}


def test_a_second_run_in_the_same_place_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from eval.harness.samples import alone

    with alone(tmp_path / "_scratch" / "test"):
        assert main([str(recipe), "--results", str(tmp_path)]) == 2
    assert "running already" in capsys.readouterr().err

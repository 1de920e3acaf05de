"""The study of kinds of text: texts that no plan has seen, plans that leave kinds out, a table that counts them."""

import json

import pytest

import geosparse as gs
from eval.studies.robustness.__main__ import main
from eval.studies.robustness.plans import PLANS, RELATED, RobustnessStudy, left_out
from eval.studies.robustness.table import RATIO, SLACK, describe, summarised
from eval.studies.robustness.texts import WITHOUT_DATA, texts_of
from geosparse.text.kinds import KINDS, kind_text

from ....plan.test_robust import of_kinds
from ....tiny import save_tiny


@pytest.mark.parametrize("name", WITHOUT_DATA)
def test_held_out_texts_are_long_and_not_those_of_calibration(name):
    text = WITHOUT_DATA[name]()
    assert len(text) > 20_000
    lines = {line for line in text.split("\n") if len(line) > 40}
    assert all(not lines & set(kind_text(kind).split("\n")) for kind in KINDS)


def test_further_texts_by_name(tmp_path):
    (tmp_path / "de.txt").write_text("Es war einmal.")
    texts = texts_of(None, [f"german={tmp_path / 'de.txt'}"])
    assert list(texts) == [*WITHOUT_DATA, "german"]
    assert texts["german"][0] == "Es war einmal."
    with pytest.raises(gs.GeosparseError, match="NAME=SOURCE"):
        texts_of(None, ["german"])


def test_a_plan_that_leaves_out_what_is_related_to_the_text():
    assert all(set(kinds) <= set(KINDS) for kinds in RELATED.values())
    profile = of_kinds(("text", "builtin:logs", "builtin:languages"), lengths=(64,) * 3)
    study = RobustnessStudy(None, None, profile, {}, 64, 1)
    assert left_out(study, 8, "access log").kinds.keys() == {"text", "builtin:languages"}
    assert left_out(study, 8, "german").kinds.keys() == {"text", "builtin:logs"}
    assert PLANS["robust"](study, 8, "german").kinds.keys() == {"text", "builtin:logs", "builtin:languages"}
    assert PLANS["specialised"](study, 8, "german").mean_keep == 8


def test_the_summary_counts_the_kinds_on_which_a_plan_does_not_hold():
    rows = {
        "uniform 8": {"a": [0.01, 0.03], "b": [0.1], "c": [-0.1]},
        "robust 8": {"a": [RATIO * 0.02 + SLACK - 1e-6], "b": [RATIO * 0.1 + SLACK + 1e-6], "c": [SLACK / 2]},
        "robust 16": {"a": [0.5]},
    }
    found = summarised(rows)
    assert found["robust 8"]["not_held"] == ["b"]
    assert found["robust 8"]["worst"]["text"] == "b"
    assert found["robust 16"]["not_held"] == []
    assert found["uniform 8"]["mean"] == pytest.approx(0.02 / 3)
    table = describe({"rows": rows, "summary": found})
    assert table.split("\n")[2].split() == ["b", "0.1000", "0.1060", "-"]


def test_the_command_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("eval.studies.robustness.texts.WITHOUT_DATA", {"logs": lambda: kind_text("logs")[::-1]})
    save_tiny(tmp_path / "model")
    (tmp_path / "book.txt").write_text("one two three four five " * 200)
    line = f"{tmp_path / 'model'} --calibration {tmp_path / 'book.txt'} --calibration-windows 1 --length 64 --windows 1"
    out = tmp_path / "result.json"
    assert main([*line.split(), "--mean-keep", "4", "--plans", "uniform,robust", "--out", str(out)]) == 0
    first = json.loads(out.read_text())
    assert first["rows"].keys() == {"uniform 4", "robust 4"}
    assert len(first["rows"]["robust 4"]["logs"]) == 1
    monkeypatch.setattr(RobustnessStudy, "excess", lambda *arguments: pytest.fail("what is done is not run again"))
    assert main([*line.split(), "--mean-keep", "4", "--plans", "uniform,robust", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["rows"] == first["rows"]
    assert "kinds not held" in capsys.readouterr().out

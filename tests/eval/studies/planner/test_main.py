"""The command on a tiny model: every part runs, a second run takes what is there."""

import json

import pytest

from eval.studies.planner import __main__ as command
from eval.studies.planner import parts
from tests.tiny import save_tiny


@pytest.mark.slow
def test_parts_are_run_once_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "MEAN_BUDGETS", (4.0, 8.0))
    save_tiny(tmp_path / "model")
    out = tmp_path / "result.json"
    words = [str(tmp_path / "model"), "--length", "64", "--windows", "2", "--calibration-windows", "2"]
    words += ["--out", str(out)]
    assert command.main([*words, "--only", "1,8"]) == 0
    first = json.loads(out.read_text())
    assert [row["mean_keep"] for row in first["parts"]["1"]] == [4, 8, 4, 8]
    assert 0 <= first["parts"]["8"][-1]["r_squared"] <= 1
    monkeypatch.setitem(command.PARTS, "1", lambda study: pytest.fail("a part that is done ran again"))
    assert command.main([*words, "--only", "1,4"]) == 0
    second = json.loads(out.read_text())
    assert second["parts"]["1"] == first["parts"]["1"]
    assert {"oracle top-p", "regime", "uniform"} <= {row["policy"] for row in second["parts"]["4"]}
    assert "oracle top-p" in capsys.readouterr().out


def test_an_unknown_part_is_refused(tmp_path, capsys):
    assert command.main(["smollm2-135m", "--out", str(tmp_path / "r.json"), "--only", "99"]) == 2
    assert "There is no part '99'" in capsys.readouterr().err

"""The command from end to end on a tiny model."""

import json

import pytest

from eval.studies.geometry import regimes
from eval.studies.geometry.shared_command import main
from tests.eval.studies.geometry.command_line import words


def test_the_regimes_command(place, capsys):
    options = regimes.options_of(words(place, "--short", "64", "--draws", "1", "--worth", "2"))
    assert main("regimes", options, regimes.study, regimes.describe) == 0
    result = json.loads((place / "out/regimes.json").read_text())
    assert "kappa against other" in capsys.readouterr().out
    assert set(result["stability"]) == {"other", "other seed", "length 64"}
    for row in result["stability"].values():
        assert -1 <= row["kappa"] <= 1
    assert [len(row) for row in result["heads"]["regime"]] == [6, 6]
    assert sum(result["shares"]["model"].values()) == pytest.approx(1.0)
    assert {"starve", "silence"} <= set(result["worth"])
    assert str(place) not in json.dumps(result["texts"])

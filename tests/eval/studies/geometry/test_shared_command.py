"""How the commands refuse, and how numbers become JSON."""

import json

import torch

from eval.studies.geometry import regimes
from eval.studies.geometry.shared_command import main, rounded
from tests.eval.studies.geometry.command_line import words


def test_the_same_text_twice_is_refused(place, capsys):
    options = regimes.options_of(words(place, "--other", str(place / "one.txt")))
    assert main("regimes", options, regimes.study, regimes.describe) == 2
    assert "two disjoint ones" in capsys.readouterr().err


def test_numbers_become_json():
    data = rounded({"a": torch.tensor([1.23456789, float("nan")]), "b": (1, 2.0), "c": "x", "d": None})
    assert json.loads(json.dumps(data)) == {"a": [1.235, None], "b": [1, 2.0], "c": "x", "d": None}

"""The driver tells mutants that the tests notice from others."""

import json

import pytest

from eval.trust import mutation


def test_the_driver_counts_what_is_noticed_and_goes_on(tmp_path, monkeypatch):
    asked = []

    def survives(module, mutant, tests):
        asked.append(mutant.what)
        return mutant.line % 2 == 0  # the module itself has line 0

    monkeypatch.setattr(mutation, "survives", survives)
    arguments = ["selection", "--most", "6", "--out", str(tmp_path / "m.json")]
    assert mutation.main(arguments) == 0
    first = json.loads((tmp_path / "m.json").read_text())["subjects"]["selection"]
    assert first["finished"]
    assert 6 < first["mutants"] <= 12  # two modules, and equal changes of one line count once
    assert first["share_killed"] == sum(first["killed"].values()) / first["mutants"]
    asked.clear()
    assert mutation.main(arguments) == 0
    assert asked == ["nothing", "nothing"]
    monkeypatch.setattr(mutation, "survives", lambda *_: False)
    with pytest.raises(mutation.GeosparseError, match="fail without any mutant"):
        mutation.main([*arguments[:-1], str(tmp_path / "n.json")])
    with pytest.raises(SystemExit, match="did you mean 'geometry'"):
        mutation.main(["geometri", *arguments[1:]])

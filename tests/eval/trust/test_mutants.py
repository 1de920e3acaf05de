"""Mutants differ from their module in one place that counts, and the driver tells noticed ones from others."""

import ast
import json

import pytest

from eval.trust import mutation
from eval.trust.mutants import mutants

SOURCE = '''"""Doc 1."""
LIMIT: int = 3


def clip(value: int | None, most=LIMIT):
    """Doc 2."""
    if value is None or not value > 0:
        raise ValueError(f"found {value + 1}")
    return min(value, most) - 1
'''


def test_each_mutant_is_one_change():
    found = mutants(SOURCE)
    whats = {mutant.what for mutant in found}
    assert {"3 -> 4", "value > 0 -> value >= 0", "value is None -> value is not None"} <= whats
    assert {"min(value, most) -> max(value, most)", "min(value, most) - 1 -> min(value, most) + 1"} <= whats
    assert any(what.endswith("-> pass") for what in whats)
    assert not [what for what in whats if what.startswith(("value + 1", "int | None"))]
    clean = ast.unparse(ast.parse(SOURCE))
    for mutant in found:
        compile(mutant.source, "mutant", "exec")
        assert mutant.source != clean
        assert mutant.source.count("Doc") == 2
    assert len({mutant.source for mutant in found}) == len(found)


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

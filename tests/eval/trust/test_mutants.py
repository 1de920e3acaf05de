"""Mutants differ from their module in one place that counts."""

import ast

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

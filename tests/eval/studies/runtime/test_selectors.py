"""Selectors on the same tokens of a tiny model."""

import json

from eval.studies.runtime import selectors
from geosparse.ops import SELECTORS
from geosparse.ops.selectors import fits


def test_selectors_are_compared_on_the_same_tokens(folder, text, tmp_path):
    arguments = [str(folder), "--text", str(text), "--lengths", "200", "--windows", "2", "--scored", "128"]
    assert selectors.main([*arguments, "--mean-keep", "200", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "selectors-200.json").read_text())["tables"][0]["variants"]
    assert set(table) == {"dense", *(f"{s}/{t}" for s in SELECTORS for t in selectors.TAILS if fits(s, t))}
    for name, row in table.items():
        if name != "dense":
            # Every token is kept: what is left is rounding.
            assert abs(row["excess_nll"]) <= 1e-4
            assert row["output_error"] <= 1e-4
    assert selectors.main([*arguments, "--mean-keep", "4", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "selectors-200.json").read_text())["tables"][0]["variants"]
    assert all(row["mean_kept"] == 4 and row["output_error"] > 0.01 for name, row in table.items() if name != "dense")
    assert table["lowbit/centroid"]["output_error"] < table["paged/centroid"]["output_error"]

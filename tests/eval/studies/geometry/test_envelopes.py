"""The command from end to end on a tiny model."""

import json

from eval.studies.geometry import envelopes, simulation
from eval.studies.geometry.shared_command import main
from tests.eval.studies.geometry.command_line import words


def test_the_envelopes_command(place, capsys, monkeypatch):
    monkeypatch.setattr(simulation, "TRIALS", 1)
    monkeypatch.setattr(
        simulation, "synthetic_coverage", lambda seed, original=simulation.synthetic_coverage: original(seed, (16,), 1)
    )
    options = envelopes.options_of(words(place, "--coverage", "1", "--json"))
    assert main("envelopes", options, envelopes.study, envelopes.describe) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((place / "out/envelopes.json").read_text())
    assert result["assumptions"]["text"]["heads"] == 12
    for row in result["coverage"]["all heads"].values():
        assert all(0 <= share <= 1 for share in row["coverage"].values())
        assert row["outcomes"] > 0
    assert [row["n_keep"] for row in result["sink_similarity_and_recall"]["over_heads"]] == [4, 16, 64]
    assert "coverage of P, R, F" in envelopes.describe(result)

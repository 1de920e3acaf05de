"""The commands from end to end on a tiny model: what they write, and how they refuse."""

import json

import pytest
import torch

from eval.geometry import envelopes, regimes, simulation, sink_similarity
from eval.geometry.study import main, rounded
from tests.tiny import save_tiny

WORDS = "the quick brown fox jumps over the lazy dog while seven wizards brew "


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    save_tiny(folder / "model")
    (folder / "one.txt").write_text("".join(WORDS[i % 31 :] for i in range(60)), encoding="utf-8")
    (folder / "two.txt").write_text("".join(WORDS[::-1][i % 17 :] for i in range(60)), encoding="utf-8")
    return folder


def words(place, *more):
    texts = ["--text", str(place / "one.txt"), "--other", str(place / "two.txt"), "--out", str(place / "out")]
    return [str(place / "model"), *texts, "--length", "128", "--windows", "2", "--queries", "12", *more]


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


def test_the_same_text_twice_is_refused(place, capsys):
    options = regimes.options_of(words(place, "--other", str(place / "one.txt")))
    assert main("regimes", options, regimes.study, regimes.describe) == 2
    assert "two disjoint ones" in capsys.readouterr().err


@pytest.mark.slow
def test_synthetic_coverage_is_at_least_nominal_where_the_law_holds():
    table = simulation.synthetic_coverage(0, (64,), 20)["cases"]
    exact = table["exact, D = 64"]
    # 20 trials of 60 outcomes; a trial's coverage scatters by about 0.05, so their mean by 0.011.
    for metric in ("precision", "recall", "f1"):
        assert exact["simulated"]["coverage"][metric] >= 0.95 - 3 * 0.011
        assert exact["level"]["coverage"][metric] >= 0.95
        assert exact["mean"]["coverage"][metric] >= 0.95
        assert exact["simulated"]["mean_width"][metric] < 0.9
    for case in ("A1 broken, D = 64", "A2 broken, D = 64"):
        assert table[case]["simulated"]["coverage"]["f1"] < exact["simulated"]["coverage"]["f1"]


def test_sink_similarity_is_the_cosine_with_what_is_selected():
    generator = torch.Generator().manual_seed(0)
    alpha = torch.full((1, 12, 100), 0.0)
    positions = torch.arange(88, 100)
    for row, position in enumerate(positions):
        alpha[0, row, 0], alpha[0, row, position - 20], alpha[0, row, position] = 0.5, 0.3, 0.2
    seen = torch.arange(100) <= positions[:, None]
    value = torch.randn(1, 100, 8, generator=generator)
    value[0, 0] *= 0.1 / value[0, 0].norm()
    found = sink_similarity.observe(alpha, value, seen, (3,))
    for row, position in enumerate(positions):
        kept = 0.3 * value[0, position - 20] + 0.2 * value[0, position]
        expected = torch.cosine_similarity(kept, value[0, 0], dim=0)
        assert float(found.similarity[0, row, 0]) == pytest.approx(float(expected), abs=1e-5)


def test_numbers_become_json():
    data = rounded({"a": torch.tensor([1.23456789, float("nan")]), "b": (1, 2.0), "c": "x", "d": None})
    assert json.loads(json.dumps(data)) == {"a": [1.235, None], "b": [1, 2.0], "c": "x", "d": None}

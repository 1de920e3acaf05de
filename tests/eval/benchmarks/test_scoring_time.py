"""Time of scoring on a tiny model."""

import json

from eval.benchmarks import scoring_time


def test_scoring_is_timed_against_dense_scoring(folder, text, tmp_path):
    arguments = [str(folder), "--text", str(text), "--length", "100", "--windows", "2", "--out", str(tmp_path)]
    assert scoring_time.main(arguments) == 0
    found = json.loads((tmp_path / "scoring-100.json").read_text())
    assert found["mean_keep"] == 64
    assert [len(times) for times in found["seconds"].values()] == [2, 2]
    assert found["sparse_over_dense"] > 0
    assert found["excess_nll"] != 0

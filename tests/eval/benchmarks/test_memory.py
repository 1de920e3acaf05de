"""Memory of a long prompt on a tiny model."""

import json

from eval.benchmarks import memory


def test_memory(folder, text, tmp_path):
    arguments = [str(folder), "--text", str(text), "--context", "200", "--new-tokens", "3", "--mean-keep", "8"]
    assert memory.main([*arguments, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "memory-200.json").read_text())
    assert 0 < found["loaded_bytes"] <= found["prefill_peak_bytes"] <= found["peak_bytes"]
    assert found["density"] < 0.1


def test_a_text_that_is_too_short_is_refused(folder, text, capsys):
    assert memory.main([str(folder), "--text", str(text), "--context", "2000000"]) == 2
    assert "error:" in capsys.readouterr().err

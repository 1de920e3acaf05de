"""The speed study: every variant is gated and timed, and a wrong result is not timed."""

import json

import pytest
import torch

import geosparse as gs
from eval import speed
from geosparse.ops import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"CPU kernels: {cpu.load_error()}")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 2)
    monkeypatch.setattr(speed, "BYTES_IN_TURN", 1)
    monkeypatch.setattr(speed, "bandwidth", lambda: 1e9)


def test_a_row_per_variant(tmp_path, capsys):
    assert speed.main(["--contexts", "300", "--keep", "8", "--out", str(tmp_path / "s.json")]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert [case["dtype"] for case in result["cases"]] == ["fp32", "bf16"]
    names = [row["variant"] for row in result["cases"][0]["rows"]]
    assert names == ["sdpa", "bmm", "own dense", "topn N=8", "lowbit N=8", "paged N=8"]
    assert all(row["us"]["p50"] > 0 for case in result["cases"] for row in case["rows"])
    assert "x own dense" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed():
    layer = speed.layers_of((4, 2, 16), 40, torch.float32)[0]
    wrong = speed.Variant(lambda layer: torch.zeros_like(layer.query), 1, 4, "topn")
    with pytest.raises(gs.GeosparseError, match="nothing was timed"):
        speed.gate(layer, wrong, 0.25)

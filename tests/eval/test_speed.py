"""The speed study: every variant is gated and timed, and a wrong result is not timed."""

import json

import pytest
import torch

import geosparse as gs
from eval import speed
from eval.benchmarks import cpu_calls, layers
from geosparse.hf.identity import ModelIdentity
from geosparse.ops import cpu

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"CPU kernels: {cpu.load_error()}")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(speed, "REPEATS", 2)
    monkeypatch.setattr(layers, "BYTES_IN_TURN", 1)
    monkeypatch.setattr(cpu_calls, "UNEVEN_REPEATS", 1)
    monkeypatch.setattr(speed, "bandwidth", lambda: 1e9)
    monkeypatch.setattr(speed, "BYTES_IN_TURN", 1 << 16)
    monkeypatch.setattr(speed, "READ_BYTES", 1 << 16)


def test_a_row_per_variant(tmp_path, capsys):
    assert speed.main(["--contexts", "300", "--keep", "8", "--out", str(tmp_path / "s.json")]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert [case["dtype"] for case in result["cases"]] == ["fp32", "bf16"]
    names = [row["variant"] for row in result["cases"][0]["rows"]]
    assert names == ["sdpa", "bmm", "own dense", "topn N=8", "lowbit N=8", "paged N=8"]
    assert all(row["us"]["p50"] > 0 for case in result["cases"] for row in case["rows"])
    assert set(result["random_gb_per_second"]) == {"128", "256", "2048", "4096"}
    assert all(row["share_of_floor"] > 0 for case in result["cases"] for row in case["rows"])
    printed = capsys.readouterr().out
    assert "x own dense" in printed
    assert "random rows of 128 bytes" in printed


def test_the_floor_is_what_the_bytes_take():
    machine = speed.Memory(stream=10.0, rows={4: 1.0, 64: 5.0})
    variant = speed.KernelVariant(torch.zeros_like, streamed=30, gathered=20, run_bytes=64, n_keep=2, selector="paged")
    assert variant.bytes == 50
    assert machine.floor(variant) == pytest.approx(3 + 4)
    assert machine.floor(variant, run_bytes=4) == pytest.approx(3 + 20)
    dense = speed.KernelVariant(torch.zeros_like, streamed=30, gathered=0, run_bytes=8, n_keep=None, selector=None)
    assert machine.floor(dense) == pytest.approx(3)


def test_ragged_budgets_prefill_and_an_empty_call(tmp_path, capsys):
    plan = gs.Plan(
        n_keep=torch.tensor([[1, 9, 20] * 3] * 2),
        tail="centroid",
        reference_length=64,
        policy="uniform",
        budget={"mean_keep": 10.0},
        model=ModelIdentity("tiny", "LlamaForCausalLM", 2, 9, 3, 64, "0123456789abcdef"),
    )
    plan.save(tmp_path / "p.json")
    extra = ["--plan", str(tmp_path / "p.json"), "--prefill", "8", "--out", str(tmp_path / "s.json")]
    assert speed.main(["--contexts", "70", "--keep", "8", "--dtypes", "fp32", *extra]) == 0
    result = json.loads((tmp_path / "s.json").read_text())
    assert result["ragged"][0]["ragged_over_even"] > 0
    assert result["prefill"][0]["exact_over_sdpa"] > 0
    assert set(result["overhead_us"]) == set(result["outside_kernel_us"]) == {"topn", "lowbit"}
    assert all(0 < result["outside_kernel_us"][word] < us for word, us in result["overhead_us"].items())
    assert "x even ones" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed():
    layer = layers.layers_of((4, 2, 16), 40, torch.float32)[0]
    wrong = speed.KernelVariant(lambda layer: torch.zeros_like(layer.query), 1, 0, 1, 4, "topn")
    with pytest.raises(gs.GeosparseError, match="nothing was timed"):
        speed.gate(layer, wrong, 0.25)

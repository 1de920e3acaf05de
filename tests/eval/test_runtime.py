"""The studies of the runtime on tiny models: they run, and count what they say they count."""

import json

import gguf
import numpy as np
import pytest
import torch

import geosparse as gs
from eval.runtime import drift, memory, scoring, selectors
from eval.runtime.llama_cpp import write_f16
from eval.runtime.prompt import peak_bytes, resident_bytes
from eval.runtime.traffic import step_bytes
from geosparse.ops import SELECTORS

from ..tiny import save_tiny, tiny_model, tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model"), max_position_embeddings=2048)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the index follows its keys, page by page; " * 80, encoding="utf-8")
    return path


def test_a_folder_that_cannot_be_is_said_before_the_work(folder, text, capsys, monkeypatch):
    monkeypatch.setattr(gs, "load_model", lambda *_, **__: pytest.fail("too late"))
    assert drift.main([str(folder), "--text", str(text), "--out", str(text)]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_drift_finds_none_and_notices_one(folder, text, tmp_path, capsys):
    arguments = [str(folder), "--text", str(text), "--context", "90", "--new-tokens", "40", "--mean-keep", "8"]
    assert drift.main([*arguments, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "drift.json").read_text())
    assert json.loads(capsys.readouterr().out) == found
    assert (found["layers"], found["indexed_layers"], found["pages"]) == (2, 2, 8)
    assert found["index_numbers_different"] == 0
    assert found["logit_difference"] == 0
    assert found["value_sum_error"] <= 1e-12
    assert found["mean_kept"] == 8
    model = tiny_model()
    with gs.sparsified(model, gs.Plan.uniform(model, 4, selector="lowbit")), torch.no_grad():
        cache = model(tokens(1, 50), use_cache=True).past_key_values
    assert drift.examine(cache)["index_numbers_different"] == 0
    cache.layers[0].keys[0, 0, 20, 3] += 5
    assert drift.examine(cache)["index_numbers_different"] > 0


def test_memory(folder, text, tmp_path):
    arguments = [str(folder), "--text", str(text), "--context", "200", "--new-tokens", "3", "--mean-keep", "8"]
    assert memory.main([*arguments, "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "memory-200.json").read_text())
    assert 0 < found["loaded_bytes"] <= found["prefill_peak_bytes"] <= found["peak_bytes"]
    assert found["density"] < 0.1
    assert 0 < resident_bytes() <= peak_bytes()


def test_selectors_are_compared_on_the_same_tokens(folder, text, tmp_path):
    arguments = [str(folder), "--text", str(text), "--lengths", "200", "--windows", "2", "--scored", "128"]
    assert selectors.main([*arguments, "--mean-keep", "200", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "selectors-200.json").read_text())["tables"][0]["variants"]
    assert set(table) == {"dense", *(f"{s}/{t}" for s in SELECTORS[:-1] for t in selectors.TAILS)} | {
        "sink_recent/renormalize"
    }
    for name, row in table.items():
        if name != "dense":
            # Every token is kept: what is left is rounding.
            assert abs(row["excess_nll"]) <= 1e-4
            assert row["output_error"] <= 1e-4
    assert selectors.main([*arguments, "--mean-keep", "4", "--out", str(tmp_path)]) == 0
    table = json.loads((tmp_path / "selectors-200.json").read_text())["tables"][0]["variants"]
    assert all(row["mean_kept"] == 4 and row["output_error"] > 0.01 for name, row in table.items() if name != "dense")
    assert table["lowbit/centroid"]["output_error"] < table["paged/centroid"]["output_error"]


def test_scoring_is_timed_against_dense_scoring(folder, text, tmp_path):
    arguments = [str(folder), "--text", str(text), "--length", "100", "--windows", "2", "--out", str(tmp_path)]
    assert scoring.main(arguments) == 0
    found = json.loads((tmp_path / "scoring-100.json").read_text())
    assert found["mean_keep"] == 64
    assert [len(times) for times in found["seconds"].values()] == [2, 2]
    assert found["sparse_over_dense"] > 0
    assert found["excess_nll"] != 0


def test_a_text_that_is_too_short_is_refused(folder, text, capsys):
    assert memory.main([str(folder), "--text", str(text), "--context", "2000000"]) == 2
    assert "error:" in capsys.readouterr().err


def test_modelled_bytes():
    shape = {"visible": 1000, "kv_heads": 3, "key_dim": 64, "value_dim": 64, "itemsize": 4}
    n_keep = [64] * 9
    assert step_bytes(None, n_keep, **shape) == 3 * 1000 * 128 * 4
    rows = 9 * 64 * 256  # bytes of the kept keys, or values
    bounds, codes, rest = 3 * 62 * 256, 3 * 62 * 512, 3 * 8 * 256
    assert step_bytes("topn", n_keep, **shape) == 3 * 1000 * 256 + rows
    assert step_bytes("sink_recent", n_keep, **shape) == 2 * rows
    assert step_bytes("lowbit", n_keep, **shape) == bounds + codes + rest + 2 * rows
    assert step_bytes("paged", n_keep, **shape) == bounds + rest + 2 * rows
    assert step_bytes("paged+lowbit", n_keep, **shape) == bounds + rest + 9 * 16 * 512 + 2 * rows
    everything = [10**6] * 9
    assert step_bytes("topn", everything, **shape) == (3 + 9) * 1000 * 256


def test_a_gguf_file_is_written_in_f16(tmp_path):
    """For llama.cpp: matrices in F16 whatever they were, vectors in F32, and every other field as it was."""
    matrix = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    packed = gguf.quants.quantize(matrix, gguf.GGMLQuantizationType.Q8_0)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_block_count(3)
    writer.add_token_list(["a", "b"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tensor("matrix", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("vector", matrix[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_f16(tmp_path / "model.gguf", tmp_path / "f16.gguf")
    reader = gguf.GGUFReader(tmp_path / "f16.gguf")
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert found["matrix"].dtype == np.float16
    assert np.array_equal(found["matrix"], gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0).astype("f2"))
    assert np.array_equal(found["vector"], matrix[0])
    assert reader.fields["llama.block_count"].contents() == 3
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_F16

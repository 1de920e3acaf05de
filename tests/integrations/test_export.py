"""Each export, read back the way its target reads it."""

import json

import numpy as np
import pytest
import torch

import geosparse as gs
from geosparse.hf.identity import ModelIdentity
from geosparse.integrations.export import FORMATS, export_plan, kv_budgets
from geosparse.integrations.model_folder import PLAN_NAME

from ..tiny import save_tiny

NAME = ModelIdentity("tiny", "LlamaForCausalLM", 2, 4, 2, 8, "0123456789abcdef")
ROWS = [[1, 2, 3, 40], [64, 6, 100, 8]]


def plan(rows=ROWS, reference_length=64):
    return gs.Plan(torch.tensor(rows), "centroid", reference_length, "fisher", {"mean_keep": 28.0}, NAME)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_lists_its_files_and_has_one_sentence(tmp_path, format):
    files, note = export_plan(plan(), format, tmp_path / "out")
    assert files
    assert sorted(files) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert note.endswith(".")
    assert note.count(". ") == 0
    before = [path.read_bytes() for path in files]
    assert export_plan(plan(), format, tmp_path / "out").files == files
    assert [path.read_bytes() for path in files] == before


def test_unknown_format(tmp_path):
    with pytest.raises(gs.GeosparseError, match="Unknown format 'duo-atention': did you mean 'duo-attention'"):
        export_plan(plan(), "duo-atention", tmp_path / "out")


def test_csv(tmp_path):
    file = export_plan(plan(), "csv", tmp_path / "plan.csv").files[0]
    table = np.loadtxt(file, delimiter=",", skiprows=1, dtype=int)
    assert file.read_text().startswith("layer,head,kv_head,n_keep\n")
    assert table.shape == (8, 4)
    for layer, head, kv_head, n in table:
        assert (n, kv_head) == (ROWS[layer][head], head // 2)


def test_budgets_of_kv_heads():
    assert kv_budgets(plan()).tolist() == [[2, 40], [64, 100]]


@pytest.mark.parametrize("reference_length", [1, 64, 1000])
def test_kvpress_keeps_the_largest_budget_of_each_group(tmp_path, reference_length):
    files, note = export_plan(plan(reference_length=reference_length), "kvpress", tmp_path / "curve")
    curve = np.load(files[0], allow_pickle=False)
    assert (curve.shape, curve.dtype) == ((99, 2, 2), np.float32)
    assert ((curve >= 0) & (curve <= 1)).all()
    kept = np.rint((1 - curve) * reference_length)
    assert (kept == np.minimum([[2, 40], [64, 100]], reference_length)).all()
    assert f"evicts {curve.mean():.4f} of" in note


def test_duo_attention_table(tmp_path):
    export_plan(plan(), "duo-attention", tmp_path / "duo")
    scores = np.loadtxt(tmp_path / "duo" / "full_attention_heads.tsv", dtype=float, delimiter="\t")
    assert scores.shape == (2, 2)
    assert scores[0] == pytest.approx(np.log([2, 40]) / np.log(64))
    assert scores[1].tolist() == [1.0, 1.0]
    assert json.loads((tmp_path / "duo" / "config.json").read_text()) == {"sink_size": 128, "recent_size": 256}


def test_duo_attention_of_a_single_token(tmp_path):
    export_plan(plan([[1] * 4] * 2, 1), "duo-attention", tmp_path)
    assert (np.loadtxt(tmp_path / "full_attention_heads.tsv") == 0).all()


def test_duo_attention_does_not_replace_the_config_of_a_model(tmp_path):
    save_tiny(tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(gs.GeosparseError, match="belongs to something else, perhaps a model"):
        export_plan(plan(), "duo-attention", tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert not (tmp_path / "full_attention_heads.tsv").exists()


class TestModelFolder:
    """`hf`, and `find_plan` as its reader."""

    def test_a_plan_travels_with_its_model(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        before = json.loads((folder / "config.json").read_text())
        assert gs.find_plan(folder) is None
        made = gs.Plan.uniform(gs.load_model(str(folder))[0], 5)
        assert export_plan(made, "hf", folder).files == [folder / PLAN_NAME, folder / "config.json"]
        after = json.loads((folder / "config.json").read_text())
        assert after == before | {"geosparse": {"plan": PLAN_NAME}}
        model, tokenizer = gs.load_model(str(folder))
        found = gs.find_plan(folder)
        assert found.to_json() == made.to_json()
        with gs.sparsified(model, found) as receipt:
            model(**tokenizer("abc abc abc", return_tensors="pt"))
        assert receipt.density < 1

    def test_a_saved_copy_keeps_the_entry_but_not_the_plan(self, tmp_path):
        folder = save_tiny(tmp_path / "model")
        model, _ = gs.load_model(str(folder))
        export_plan(gs.Plan.uniform(model, 5), "hf", folder)
        gs.load_model(str(folder))[0].save_pretrained(tmp_path / "copy")
        with pytest.raises(gs.GeosparseError, match="No such file"):
            gs.find_plan(tmp_path / "copy")

    def test_a_folder_without_a_model(self, tmp_path):
        assert gs.find_plan(tmp_path) is None
        assert gs.find_plan(tmp_path / "none") is None
        assert export_plan(plan(), "hf", tmp_path / "new").files == [tmp_path / "new" / PLAN_NAME]
        assert torch.equal(gs.find_plan(tmp_path / "new").n_keep, plan().n_keep)

    @pytest.mark.parametrize("key", ["num_attention_heads", "text_config"])
    def test_a_model_with_other_heads_is_refused(self, tmp_path, key):
        heads = {"num_attention_heads": 5}
        text = json.dumps(heads if key in heads else {key: heads})
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(gs.GeosparseError, match=r"with 4 query heads, but .* says 5"):
            export_plan(plan(), "hf", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["config.json"]

    @pytest.mark.parametrize("content", ["[]", "{", "3"])
    def test_a_config_that_is_none(self, tmp_path, content):
        (tmp_path / "config.json").write_text(content)
        for action in (lambda: gs.find_plan(tmp_path), lambda: export_plan(plan(), "hf", tmp_path)):
            with pytest.raises(gs.GeosparseError, match="is not a model configuration"):
                action()
        assert (tmp_path / "config.json").read_text() == content

    @pytest.mark.parametrize("name", ["../plan.json", "/plan.json", "a/b", "..", "", ".\\x", None, 3])
    def test_an_entry_that_points_elsewhere(self, tmp_path, name):
        (tmp_path / "config.json").write_text(json.dumps({"geosparse": {"plan": name}}))
        with pytest.raises(gs.GeosparseError, match="needs a file name in the same folder"):
            gs.find_plan(tmp_path)

"""The way into a model: its configs are its own while it is sparse, and as they were afterwards."""

import copy

import pytest
import torch
import transformers

import geosparse as gs
from geosparse import GeosparseError
from geosparse.hf.interface import installed

from ..tiny import tiny_model, tokens


def twins():
    """Two models with different weights and one config object."""
    config = tiny_model("llama").config
    models = [transformers.LlamaForCausalLM(config).eval().requires_grad_(False) for _ in range(2)]
    assert models[0].config is models[1].config
    return models


def test_a_model_that_shares_its_config_stays_dense():
    first, second = twins()
    ids = tokens(2, 40)
    with torch.no_grad():
        expected = second(ids).logits
        with gs.sparsified(first, gs.Plan.uniform(first, 2)):
            assert installed(first)
            assert not installed(second)
            assert torch.equal(second(ids).logits, expected)
            assert torch.equal(second.generate(ids, max_new_tokens=3), second.generate(ids, max_new_tokens=3))


def test_two_models_with_one_config_are_sparse_at_once_and_restored_in_any_order():
    first, second = twins()
    config, ids = first.config, tokens(1, 40)
    with torch.no_grad():
        dense = [model(ids).logits for model in (first, second)]
        receipts = [gs.sparsify_(model, gs.Plan.uniform(model, 2)) for model in (first, second)]
        sparse = [model(ids).logits for model in (first, second)]
        assert all(receipt.queries.all() for receipt in receipts)
        gs.restore_(first)
        assert torch.equal(first(ids).logits, dense[0])
        assert torch.equal(second(ids).logits, sparse[1])
        gs.restore_(second)
        assert torch.equal(second(ids).logits, dense[1])
    assert first.config is second.config is config
    assert config._attn_implementation == "sdpa"


def test_what_is_set_in_the_config_meanwhile_stays():
    model = tiny_model("llama")
    config = model.config
    with gs.sparsified(model, gs.Plan.uniform(model, 4)):
        model.config.use_cache = False
        model.config.note = "kept"
        assert model.model.config is model.config
    assert model.config is config
    assert all(module.config is config for module in model.modules() if hasattr(module, "config"))
    assert (config.use_cache, config.note, config._attn_implementation) == (False, "kept", "sdpa")


def test_a_config_that_is_saved_meanwhile_says_nothing_of_it(tmp_path):
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)  # which notes the architecture in the config
    before = model.config.to_dict()
    with gs.sparsified(model, gs.Plan.uniform(model, 4)):
        model.save_pretrained(tmp_path)
    assert "geosparse" not in (tmp_path / "config.json").read_text(encoding="utf-8")
    assert model.config.to_dict() == before


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_copy_of_a_sparse_model_is_restored_for_itself(implementation):
    model = tiny_model("llama")
    model.set_attn_implementation(implementation)
    ids = tokens(1, 30)
    with torch.no_grad():
        dense = model(ids).logits
        gs.sparsify_(model, gs.Plan.uniform(model, 2))
        sparse, other = model(ids).logits, copy.deepcopy(model)
        gs.restore_(model)
        assert torch.equal(other(ids).logits, sparse)
        gs.restore_(other)
        assert torch.equal(other(ids).logits, dense)
        assert torch.equal(model(ids).logits, dense)
    assert other.config._attn_implementation == implementation


@pytest.mark.parametrize(
    "use",
    [
        lambda model: gs.Plan.uniform(model, 4),
        lambda model: gs.score(model, None, tokens(1, 20)),
        lambda model: gs.profile_model(model, lambda text, **_: {"input_ids": [3] * 200}, ["text"]),
    ],
    ids=["plan", "score", "profile"],
)
def test_a_model_without_weights_is_refused_in_one_sentence(use):
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(tiny_model("llama").config)
    with pytest.raises(GeosparseError, match=r"has no weights: .* is on the device meta; load the model"):
        use(model)
    with pytest.raises(GeosparseError, match="device meta"):
        gs.sparsify_(model, gs.Plan.uniform(tiny_model("llama"), 4))

"""Keywords of an attention call: understood, of no concern, or refused by name."""

import pytest
import torch

import geosparse as gs
from geosparse import GeosparseError
from geosparse.hf.keywords import HARMLESS, KNOWN, UNDERSTOOD, check_keywords

from ..tiny import tiny_model, tokens

REFUSED = {
    "block_indices": torch.zeros(1, 2, 3, dtype=torch.int64),
    "indices": torch.zeros(1, 2, 3, dtype=torch.int64),
    "position_bias": torch.zeros(1),
    "head_mask": torch.ones(6),
    "cache": object(),
    "cu_seq_lens_q": torch.tensor([0, 5, 9]),
    "cu_seq_lens_k": torch.tensor([0, 5, 9]),
    "max_length_q": 5,
    "max_length_k": 5,
    "seq_idx": torch.zeros(1, 9, dtype=torch.int32),
    "output_attentions": True,
    "made_up": "value",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_keyword_of_the_models_call_is_refused_by_name(name):
    model = tiny_model("llama")
    module = model.model.layers[1].self_attn
    with pytest.raises(GeosparseError, match=rf"LlamaAttention \(layer 1, model type llama\).* {name}, ") as error:
        check_keywords(module, {"scaling": 1.0, name: REFUSED[name]})
    assert str(error.value).count(". ") == 0


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "max_length_k", "made_up", "seq_idx"])
def test_what_a_user_hands_down_through_the_model_is_refused(name):
    model = tiny_model("llama")
    with (
        gs.sparsified(model, gs.Plan.uniform(model, 4)),
        torch.no_grad(),
        pytest.raises(GeosparseError, match=f"called with {name}, "),
    ):
        model(tokens(1, 9), **{name: REFUSED[name]})


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("value", [None, False, 0])
def test_what_is_not_wanted_is_no_reason(name, value):
    check_keywords(torch.nn.Identity(), {name: value})


def test_what_concerns_the_whole_model_changes_nothing():
    model, ids = tiny_model("llama"), tokens(1, 30)
    with gs.sparsified(model, gs.Plan.uniform(model, 4)), torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(model(ids, num_items_in_batch=torch.tensor(7)).logits, expected)
        assert torch.equal(model(ids, position_ids=torch.arange(30)[None]).logits, expected)
        assert torch.equal(model(ids, output_hidden_states=True, return_dict=True).logits, expected)


def test_every_harmless_keyword_has_a_reason():
    assert all(HARMLESS.values())
    assert not UNDERSTOOD & set(HARMLESS)
    assert UNDERSTOOD | set(HARMLESS) == KNOWN


def test_packed_sequences_that_only_the_positions_show_are_kept_apart():
    model, ids = tiny_model("llama"), tokens(1, 30)
    places = torch.cat([torch.arange(12), torch.arange(18)])[None]
    with torch.no_grad():
        dense = model(ids, position_ids=places, use_cache=False).logits
        with gs.sparsified(model, gs.Plan.uniform(model, 10**6)):
            sparse = model(ids, position_ids=places, use_cache=False).logits
    assert (sparse - dense).abs().max() <= 1e-4 * dense.abs().max()

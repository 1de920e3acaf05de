"""Discovery of a model's attention layers, and refusals by name."""

import pytest
import torch
import transformers

import geosparse as gs
from geosparse import GeosparseError
from geosparse.hf.call import call_of
from geosparse.hf.dense import attend_dense
from geosparse.hf.layers import (
    LONGEST_REACH,
    PROBE_TOKENS,
    attention_layers,
    reaches,
)
from geosparse.ops import Terms

from ..tiny import EXTRA, VOCABULARY, WINDOW, save_tiny, tiny_model, tiny_tokenizer, tokens


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_layers_and_projections_are_found(kind):
    model = tiny_model(kind)
    layers = attention_layers(model)
    assert [layer.name for layer in layers] == ["model.layers.0.self_attn", "model.layers.1.self_attn"]
    for layer, block in zip(layers, model.model.layers, strict=True):
        assert layer.projection is block.self_attn.o_proj
        assert (layer.heads, layer.kv_heads, layer.key_dim, layer.value_dim) == (6, 2, 8, 8)
        assert torch.allclose(layer.output_matrix(), block.self_attn.o_proj.weight, atol=1e-6)
    windows = {"mistral": [WINDOW, WINDOW], "gemma2": [WINDOW, None], "gemma3_text": [WINDOW, None]}
    assert [layer.window for layer in layers] == windows.get(kind, [None, None])
    assert (
        model.config._attn_implementation
        == transformers.AutoModelForCausalLM.from_config(model.config).config._attn_implementation
    )


def test_a_biased_projection_gives_its_matrix():
    model = tiny_model("llama", attention_bias=True)
    torch.nn.init.normal_(model.model.layers[0].self_attn.o_proj.bias)
    layer = attention_layers(model)[0]
    assert torch.allclose(layer.output_matrix(), layer.module.o_proj.weight, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            transformers.T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2),
            "encoder-decoder",
        ),
        (transformers.BloomConfig(vocab_size=64, hidden_size=16, n_layer=1, n_head=2), "AttentionInterface"),
    ],
)
def test_unsupported_architectures_are_refused_by_name(config, reason):
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config)
    with pytest.raises(GeosparseError, match=reason) as error:
        attention_layers(model)
    assert type(model).__name__ in str(error.value)


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) >= 5, reason="transformers 5 does not offer SDPA for soft-capped logits"
)
def test_a_soft_cap_that_sdpa_drops_is_refused_and_load_model_avoids_it(tmp_path):
    model = transformers.AutoModelForCausalLM.from_config(tiny_model("gemma2").config, attn_implementation="sdpa")
    with pytest.raises(
        GeosparseError, match='leaves out the soft cap of its logits; load it with attn_implementation="eager"'
    ):
        gs.Plan.uniform(model, 4)
    loaded, _ = gs.load_model(str(save_tiny(tmp_path / "model", "gemma2")))
    assert loaded.config._attn_implementation == "eager"
    assert len(attention_layers(loaded)) == 2


def test_attention_that_is_more_than_the_interface_says_is_refused(monkeypatch):
    model = tiny_model("llama")
    kind = type(model.model.layers[0].self_attn)
    attend = kind.forward

    def biased(self, *args, **kwargs):
        return attend(self, *args, position_bias=torch.zeros(1), **kwargs)

    monkeypatch.setattr(kind, "forward", biased)
    with pytest.raises(GeosparseError, match="position_bias"):
        attention_layers(model)


def test_a_headless_model_and_a_plain_module_are_refused():
    with pytest.raises(GeosparseError, match="no language-model head"):
        attention_layers(tiny_model("llama").model)
    with pytest.raises(GeosparseError, match="Expected a transformers"):
        attention_layers(torch.nn.Linear(2, 2))


def test_a_mask_may_be_longer_than_the_keys():
    query, key, value = torch.randn(3, 1, 2, 5, 8, generator=torch.Generator().manual_seed(0))
    seen = torch.ones(5, 5, dtype=torch.bool).tril()[None, None]
    longer = torch.nn.functional.pad(seen, (0, 3), value=True)
    whole, same = (attend_dense(call_of(query, key, value, mask, Terms(8**-0.5))) for mask in (longer, seen))
    assert torch.equal(whole, same)


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_that_shows_later_tokens_is_refused(monkeypatch, additive):
    model = tiny_model("llama")
    kind = type(model.model.layers[0].self_attn)
    attend = kind.forward

    def both_ways(self, *args, **kwargs):
        mask = torch.zeros(1, 1, 8, 8) if additive else torch.ones(1, 1, 8, 8, dtype=torch.bool)
        return attend(self, *args, **kwargs | {"attention_mask": mask})

    monkeypatch.setattr(kind, "forward", both_ways)
    with pytest.raises(GeosparseError, match="its attention is not causal"):
        attention_layers(model)


@pytest.mark.parametrize(
    ("kind", "changes", "tokens"),
    [
        ("llama", {}, 8),
        ("mistral", {"sliding_window": 16}, 24),
        ("mistral", {"sliding_window": 4096}, 8),
        ("llama4_text", {"attention_chunk_size": 40, "floor_scale": 8192}, 48),
        ("minimax_m3_vl_text", {"index_block_size": 8, "index_topk_blocks": 5}, 48),
    ],
)
def test_the_probe_is_longer_than_what_the_configuration_says_attention_reaches(kind, changes, tokens):
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip("this release of transformers does not have it")
    config = transformers.AutoConfig.for_model(kind, max_position_embeddings=512, **changes)
    assert longest_of(config) >= tokens
    assert longest_of(config) <= LONGEST_REACH + PROBE_TOKENS


def longest_of(config):
    return max((reach for reach in reaches(config) if reach <= LONGEST_REACH), default=0) + PROBE_TOKENS


@pytest.mark.parametrize("window", [5, 16, 300])
def test_what_acts_only_beyond_a_window_of_the_config_is_noticed_and_windows_of_any_length_are_kept(
    monkeypatch, window
):
    model = tiny_model("mistral", sliding_window=window)
    ids = tokens(1, min(window + 40, 400))
    with torch.no_grad():
        dense = model(ids, use_cache=False).logits
        with gs.sparsified(model, gs.Plan.uniform(model, 10**6)):
            sparse = model(ids, use_cache=False).logits
    assert (sparse - dense).abs().max() <= 1e-4 * dense.abs().max()
    if window > LONGEST_REACH:
        return
    kind = type(model.model.layers[0].self_attn)
    attend = kind.forward

    def other(self, hidden_states, *args, **kwargs):
        output, weights = attend(self, hidden_states, *args, **kwargs)
        long = hidden_states.shape[1] > window and self.config._attn_implementation == "sdpa"
        return output * (2 if long else 1), weights

    monkeypatch.setattr(kind, "forward", other)
    model = tiny_model("mistral", sliding_window=window)
    plan = gs.Plan.uniform(model, 4)
    with pytest.raises(GeosparseError, match="cannot be reproduced"):
        gs.sparsify_(model, plan)


def test_a_model_whose_code_trips_over_our_attention_is_refused_by_name(monkeypatch):
    model = tiny_model("llama")
    kind = type(model.model.layers[0].self_attn)
    attend = kind.forward

    def wants_weights(self, *args, **kwargs):
        output, weights = attend(self, *args, **kwargs)
        return output, weights.sum()

    monkeypatch.setattr(kind, "forward", wants_weights)
    with pytest.raises(GeosparseError, match=r"LlamaForCausalLM is not supported: .* it ends in AttributeError"):
        attention_layers(model)


@pytest.mark.parametrize("kind", ["opt", "bart", "ctrl"])
def test_models_whose_head_is_reached_otherwise_or_that_scale_in_place_are_profiled(kind):
    sizes = {
        "opt": {"ffn_dim": 96, "word_embed_proj_dim": 48},
        "bart": {"d_model": 48, "decoder_layers": 2, "decoder_attention_heads": 6, "decoder_ffn_dim": 64},
        "ctrl": {"n_embd": 48, "n_layer": 2, "n_head": 6, "dff": 64, "n_positions": 512},
    }
    model = tiny_model(kind, vocab_size=len(VOCABULARY), **sizes[kind])
    config = gs.ProfileConfig(48, 2, queries=8, budgets=(4, 16), random_sets=1, geometry_queries=2, kinds=())
    profile = gs.profile_model(model, tiny_tokenizer(), ["some words of text " * 40], config)
    plan = gs.make_plan(profile, 8)
    ids = tokens(2, 40)
    scored = gs.score(model, gs.Plan.uniform(model, 10**6), ids)
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert scored["dense"]["nll"] == pytest.approx(float(loss), rel=1e-4)
    assert scored["sparse"]["nll"] == pytest.approx(float(loss), rel=1e-4)
    assert plan.mean_keep == pytest.approx(8, rel=0.2)

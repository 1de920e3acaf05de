"""NaN, infinity, overflow, blind queries, zero values, repeated tokens: defined results, or errors with a place."""

import pytest
import torch

import geosparse as gs
from geosparse.cli.generate import generate
from geosparse.geometry.fits import fit
from geosparse.geometry.moments import window_moments
from geosparse.geometry.regimes import REGIMES, classify, signatures
from geosparse.measure.loss import score
from geosparse.ops import PATHS, SELECTORS, TAILS, reference_attention
from geosparse.ops.cpu import library
from geosparse.reports.bands import bands
from geosparse.reports.heads import head_facts
from geosparse.reports.profile import write_profile_page

from .artifacts.test_profile import CONFIG, LENGTH, TEXT, model_of, profile_of
from .tiny import tiny_tokenizer

HEADS, KV_HEADS, DIM = 6, 2, 8


def projection(model, layer, name):
    return getattr(model.model.layers[layer].self_attn, name).weight


def plan_of(model):
    return gs.make_plan(profile_of(model), mean_keep=4)


def windows(text=TEXT):
    return gs.token_windows(tiny_tokenizer(), text, LENGTH, 2)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("name", "rows", "place"),
    [
        ("v_proj", slice(8, 16), r"layer 1, KV head 1 \(values\)"),
        ("k_proj", slice(0, 8), r"layer 1, KV head 0 \(keys\)"),
        ("q_proj", slice(24, 32), r"layer 1, head 3 \(queries\)"),
        ("q_proj", slice(0, 48), r"layer 1, head 0 and 5 more \(queries\)"),
    ],
)
def test_weights_that_are_not_numbers_are_named_by_layer_and_head(monkeypatch, name, rows, place, number):
    plan, model = plan_of(model_of()), model_of()
    projection(model, 1, name)[rows] = number
    with pytest.raises(gs.GeosparseError, match=rf"loss on the calibration text is nan.*first at {place}; use a sound"):
        profile_of(model)
    with pytest.raises(gs.GeosparseError, match=rf"loss is not finite \(dense\).*first at {place}"):
        score(model, None, windows())
    if name == "v_proj":  # the dense kernel of torch answers scores that are not numbers with zeros
        with pytest.raises(gs.GeosparseError, match=rf"overflow on this prompt, first at {place}"):
            generate(model, tiny_tokenizer(), "alpha beta", None, 4)
    # A plan knows its model by samples of the weights; where those are the same, numbers are looked at.
    monkeypatch.setattr(gs.Plan, "check", lambda plan, model: None)
    with pytest.raises(gs.GeosparseError, match=rf"logits of this LlamaForCausalLM are not finite.*first at {place}"):
        generate(model, tiny_tokenizer(), "alpha beta", plan, 4)
    assert model.config._attn_implementation != "geosparse"


def test_a_fault_behind_attention_is_named_so():
    model = model_of()
    model.lm_head.weight[5] = torch.nan
    with pytest.raises(gs.GeosparseError, match="first at after the attention of layer 1, the last"):
        score(model, None, windows())


def test_half_precision_that_overflows_is_an_error_with_a_place():
    model = model_of().half()
    projection(model, 1, "v_proj")[8:16] *= 60000.0
    with pytest.raises(gs.GeosparseError, match=r"torch\.float16, overflow, first at layer 1, KV head 1 \(values\)"):
        profile_of(model)


def test_one_token_at_fault_is_an_error_where_it_is_used(monkeypatch):
    model, tokenizer = model_of(), tiny_tokenizer()
    plan = plan_of(model)
    told = [generate(model, tokenizer, "alpha beta", chosen, 4)["text"] for chosen in (None, plan)]
    model.model.embed_tokens.weight[tokenizer("Z")["input_ids"][-1]] = torch.inf
    monkeypatch.setattr(gs.Plan, "check", lambda plan, model: None)
    assert [generate(model, tokenizer, "alpha beta", chosen, 4)["text"] for chosen in (None, plan)] == told
    for chosen in (None, plan):
        with pytest.raises(gs.GeosparseError, match=r"overflow on this prompt, first at layer 0, KV heads 0 and 1"):
            generate(model, tokenizer, "alpha Z beta", chosen, 4)
        assert model.config._attn_implementation != "geosparse"


def test_errors_that_overflow_the_profile_name_the_head():
    profile = profile_of(model_of())
    arrays = {name: array.clone() for name, array in profile.arrays.items()}
    arrays["fisher"][0, 0, 1, 1, 4, 2] = torch.inf
    with pytest.raises(gs.GeosparseError, match="the array fisher holds NaN or infinity, first at layer 1, head 4"):
        gs.Profile(**vars(profile) | {"arrays": arrays})


def test_signatures_that_are_not_numbers_name_the_head():
    told = profile_of(model_of()).mean("signatures")
    told[1, 2] = torch.nan
    with pytest.raises(gs.GeosparseError, match="found NaN at layer 1, head 2"):
        classify(told)


def tensors(queries=5, keys=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, HEADS, queries, DIM), (2, KV_HEADS, keys, DIM), (2, KV_HEADS, keys, DIM)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def paths():
    names = [name for name in PATHS if name not in ("reference", "triton")]
    return [name for name in names if name != "cpu" or library() is not None]


@pytest.mark.parametrize("path", paths())
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("queries", [1, 5])
def test_queries_that_see_nothing_get_zeros(path, tail, queries):
    q, k, v = tensors(queries)
    mask = torch.ones(2, 1, queries, 40, dtype=torch.bool)
    mask[1, :, -1] = False
    found = PATHS[path](q, k, v, [4] * HEADS, tail=tail, scaling=0.3, mask=mask)
    true = reference_attention(q, k, v, [4] * HEADS, tail=tail, scaling=0.3, mask=mask)
    assert found.output[1, :, -1].abs().max() == 0
    assert torch.equal(found.kept, true.kept)
    assert (found.output - true.output).abs().max() <= 64 * torch.finfo(torch.float32).eps * v.abs().max()


@pytest.mark.parametrize("path", paths())
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_head_leaves_the_others_alone(path, selector, queries, poison):
    q, k, v = tensors(queries)
    arguments = {"tail": "renormalize", "scaling": 0.3, "selector": selector}
    clean = PATHS[path](q, k, v, [4] * HEADS, **arguments)
    k, v = k.clone(), v.clone()
    k[0, 1, 7] = poison
    v[0, 1] = poison
    found = PATHS[path](q, k, v, [4] * HEADS, **arguments)
    assert torch.equal(found.output[1], clean.output[1])
    assert torch.equal(found.output[0, :3], clean.output[0, :3])
    assert not torch.isfinite(found.output[0, 3:]).all()


def test_values_of_norm_zero():
    model = model_of()
    projection(model, 0, "v_proj")[:8] = 0.0
    profile = profile_of(model)
    assert profile.relative_output_error("renormalize")[0, :3].abs().max() == 0
    for head in range(3):
        ours = [facts for facts in head_facts(profile, bands(profile)) if facts["head"] == head and not facts["layer"]]
        assert ours[0]["regime"] in REGIMES
        assert not ours[0]["assumptions"]["A2"]["holds"]
    plan = gs.make_plan(profile, mean_keep=4)
    assert score(model, plan, windows())["sparse"]["nll"] > 0


def test_a_head_that_is_all_sink():
    seen = torch.arange(64) <= torch.arange(40, 60)[:, None]
    alpha = torch.zeros(2, 20, 64)
    alpha[..., 0] = 1.0
    value = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(0))
    value[0, 0] *= 0.01
    told = signatures(alpha, value, seen, None)
    regime = classify(told)
    assert [REGIMES[label] for label in regime.label] == ["reset", "reset"]
    fits = fit(window_moments(alpha, value, seen))
    assert fits.profile.sink_mass.tolist() == [1.0, 1.0]
    assert torch.isfinite(fits.profile.intercept).all()
    value[0] = value[0, :1]  # all alike: no sink can be told from the rest
    assert torch.isfinite(signatures(alpha, value, seen, None)[:, :1]).all()
    assert not torch.isnan(fit(window_moments(alpha, value, seen)).norm.level).any()


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_text_of_one_repeated_token(kind, tmp_path):
    model = model_of(kind)
    text = "a" * 3 * LENGTH
    profile = gs.profile_model(model, tiny_tokenizer(), text, gs.ProfileConfig(**vars(CONFIG)))
    assert torch.isfinite(profile.mean("fisher")).all()
    f1 = profile.geometry("f1")
    assert ((f1 >= 0) & (f1 <= 1) | f1.isnan()).all()
    write_profile_page(tmp_path / "p.html", profile, bands(profile))
    assert "nan" not in (tmp_path / "p.html").read_text().lower()
    plan = gs.make_plan(profile, mean_keep=4)
    told = score(model, plan, windows(text))
    assert told["sparse"]["nll"] == pytest.approx(told["dense"]["nll"], rel=0.5)
    assert generate(model, tiny_tokenizer(), "aaaaaaaa", plan, 4)["new_tokens"] >= 1

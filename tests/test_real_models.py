"""The promises of the README on the two embedded real models."""

from functools import cache

import pytest
import torch

import geosparse as gs
from geosparse.geometry.separation import DISTANCES, contribution_score, selection_order, separations
from geosparse.profile.capture import walk_layers

from .geometry.test_separation import hold_against_brute_force

pytestmark = pytest.mark.real

MODELS = ["smollm2-135m", "gemma3-270m"]


@cache
def load(name):
    try:
        return gs.load_model(name, dtype="float32")
    except gs.GeosparseError as error:
        pytest.skip(f"{name} is not cached and cannot be downloaded: {error}")


def windows(name, length, count):
    return gs.token_windows(load(name)[1], gs.load_texts("pydoc:test"), length, count)


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


@pytest.mark.parametrize("name", MODELS)
def test_full_budget_gives_dense_logits(name):
    model, _ = load(name)
    ids = windows(name, 540, 1)  # longer than Gemma's sliding window
    dense = logits(model, ids)
    with gs.sparsified(model, gs.Plan.uniform(model, 540, "centroid")) as receipt:
        assert (logits(model, ids) - dense).abs().max() <= 1e-4
    assert receipt.density == 1.0
    assert torch.equal(logits(model, ids), dense)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_cast_to_bfloat16_is_taken(name):
    """Its logits for unusual tokens follow from rounding: those of two right ways of attention may be far apart."""
    model = gs.load_model(name, dtype="float32")[0].to(torch.bfloat16)
    with gs.sparsified(model, gs.Plan.uniform(model, 4)) as receipt:
        assert torch.isfinite(logits(model, windows(name, 12, 1))).all()
    assert receipt.density < 1


@pytest.mark.parametrize("name", MODELS)
def test_left_padded_batch_and_generate(name):
    model, tokenizer = load(name)
    tokenizer.padding_side = "left"
    prompts = ["The three primary colours are", "In the year 1969, two men walked on the"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    plan = gs.Plan.uniform(model, 5, "centroid")
    with gs.sparsified(model, plan) as receipt:
        together = model.generate(**batch, max_new_tokens=8, do_sample=False)
        for row, prompt in enumerate(prompts):
            alone = tokenizer(prompt, return_tensors="pt")
            single = model.generate(**alone, max_new_tokens=8, do_sample=False)
            new = single[0, alone["input_ids"].shape[1] :]
            assert torch.equal(together[row, batch["input_ids"].shape[1] :][: len(new)], new)
    assert receipt.mean_kept <= 5


def test_the_default_plan_beats_uniform_on_text_that_was_not_calibrated_on():
    model, tokenizer = load("smollm2-135m")
    config = gs.ProfileConfig(length=512, windows=2, queries=32, kinds=())
    profile = gs.profile_model(model, tokenizer, gs.load_texts("pydoc:calibration"), config)
    test = windows("smollm2-135m", 512, 2)

    def excess(plan):
        return gs.score(model, plan, test)["sparse"]["excess_nll"]

    uniform = excess(gs.Plan.uniform(model, 32))
    assert excess(gs.make_plan(profile, 32)) <= uniform / 4
    assert excess(gs.make_plan(profile, 32, "permuted", "renormalize")) > uniform


def test_a_text_that_opens_with_equal_tokens_is_no_catastrophe():
    """Each of them is an attention sink; a head that keeps fewer tokens than that misses most of its mass."""
    model, tokenizer = load("smollm2-135m")
    profile = gs.profile_model(
        model,
        tokenizer,
        gs.load_texts("pydoc:calibration"),
        gs.ProfileConfig(length=512, windows=2, queries=32, kinds=()),
    )
    plain = windows("smollm2-135m", 512, 2)
    for repeats in (3, 8):
        test = torch.cat([plain[:, :1].expand(-1, repeats - 1), plain], 1)[:, :512]
        for mean_keep in (16, 32):
            found = gs.score(model, gs.make_plan(profile, mean_keep), test)["sparse"]["excess_nll"]
            uniform = gs.score(model, gs.Plan.uniform(model, mean_keep), test)["sparse"]["excess_nll"]
            assert found <= uniform / 2, (repeats, mean_keep, found, uniform)


@pytest.mark.parametrize("name", MODELS)
def test_metrics_of_real_heads_equal_brute_force(name):
    model, _ = load(name)
    window = windows(name, 96, 1)[0]
    budgets = [1, 2, 3, 8, 32, 95]
    for item in walk_layers(model, window, [40, 95]):
        if item.index % 6:
            continue
        rows = next(item.groups())
        alpha, value = rows.alpha[0].double(), rows.value[0].double()
        for score in (rows.scores[0], contribution_score(alpha, value)):
            order = selection_order(score, rows.seen)
            # In the first layer copies of a token point the same way: only the 1e-12 of the cosine tells them apart,
            # and whether they tie is rounding.
            distances = DISTANCES if item.index else DISTANCES[:1]
            hold_against_brute_force(alpha, value, order, rows.seen, budgets, distances)
            # What the profiler computes in fp32 is the same, save for single tokens that all but tie.
            exact = separations(alpha, value, order, rows.seen, budgets, distances)
            rough = separations(rows.alpha[0], rows.value[0], order, rows.seen, budgets, distances)
            for distance in distances:
                for metric in ("precision", "recall", "f1"):
                    apart = getattr(exact[distance], metric) - getattr(rough[distance], metric)
                    assert apart.nan_to_num().abs().max() < 0.01, (item.index, distance, metric)

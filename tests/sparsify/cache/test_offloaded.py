"""A cache in host memory says what one on the device says, and copies few pages."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import geosparse as gs
from geosparse.ops import PAGE, SELECTORS, TAILS
from geosparse.sparsify.cache.offloaded import OffloadedLayer

from ...tiny import tiny_model, tokens

LENGTH, PROMPT = 150, 120
# fp32: another order of summation through two layers; another token kept moves logits by 1e-2 and more.
TOLERANCE = 1e-4
KINDS = ["llama", "gemma3_text", "gpt_oss", "gemma2"]


def varied(model, selector, tail="centroid", **changes):
    plan = gs.Plan.uniform(model, 1, tail if SELECTORS[selector].knows_rest else "renormalize", selector=selector)
    plan.n_keep.copy_(torch.arange(2, plan.n_keep.numel() + 2).view_as(plan.n_keep))
    return replace(plan, **changes)


def decode(model, cache, ids, start=PROMPT, **kwargs):
    with torch.no_grad():
        pieces = [model(ids[:, :start], past_key_values=cache, **kwargs).logits]
        for place in range(start, ids.shape[1]):
            pieces.append(model(ids[:, place : place + 1], past_key_values=cache, **kwargs).logits)
    return torch.cat(pieces, dim=1)


def offloaded(cache):
    return [layer for layer in cache.layers if isinstance(layer, OffloadedLayer)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("hot", [1, 4])
def test_equals_a_cache_that_is_not_offloaded(kind, selector, hot):
    model, ids = tiny_model(kind), tokens(2, LENGTH)
    cache = gs.SparseCache(model.config, hot_pages=hot)
    assert offloaded(cache)
    with gs.sparsified(model, varied(model, selector)) as receipt:
        theirs = decode(model, gs.SparseCache(model.config), ids)
        counted = receipt.kept
        receipt.reset()
        ours = decode(model, cache, ids)
        assert torch.equal(receipt.kept, counted)
        spite = "read as a whole in spite of offloading, because a head scores every key"
        assert any(spite in note for note in receipt.notes) == (selector == "topn")
    assert (ours - theirs).abs().max() <= TOLERANCE
    assert any(layer.pages.fetched for layer in offloaded(cache)) == (selector != "topn")


@pytest.mark.parametrize("prompt", [1, 3, PAGE - 1, PAGE])
def test_prompts_shorter_than_a_page(prompt):
    model, ids = tiny_model("llama"), tokens(1, 40)
    with gs.sparsified(model, varied(model, "lowbit")):
        theirs = decode(model, gs.SparseCache(model.config), ids, prompt)
        ours = decode(model, gs.SparseCache(model.config, hot_pages=1), ids, prompt)
    assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("tail", TAILS)
def test_left_padding_growth_and_mixed_selectors(tail):
    model, ids = tiny_model("llama"), tokens(3, LENGTH)
    ids[1, :23], ids[2, :64] = 0, 0
    mask = torch.ones_like(ids)
    mask[1, :23], mask[2, :64] = 0, 0
    places = torch.arange(12).view(2, 6) % 3 + 1  # lowbit, paged, paged+lowbit
    growth = torch.linspace(0, 1, 12, dtype=torch.float64).view(2, 6)
    plan = varied(model, "lowbit", tail, head_selectors=places, growth=growth, reference_length=30)
    outputs = []
    with gs.sparsified(model, plan):
        for cache in (gs.SparseCache(model.config), gs.SparseCache(model.config, hot_pages=2)):
            with torch.no_grad():
                pieces = [model(ids[:, :PROMPT], past_key_values=cache, attention_mask=mask[:, :PROMPT]).logits]
                for place in range(PROMPT, LENGTH):
                    step = {"past_key_values": cache, "attention_mask": mask[:, : place + 1]}
                    pieces.append(model(ids[:, place : place + 1], **step).logits)
            outputs.append(torch.cat(pieces, dim=1)[:, PROMPT:])
    assert (outputs[0] - outputs[1]).abs().max() <= TOLERANCE


def test_pages_read_lately_are_not_copied_again():
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    few, many = (gs.SparseCache(model.config, hot_pages=hot) for hot in (1, LENGTH))
    with gs.sparsified(model, gs.Plan.uniform(model, 1, "centroid", selector="lowbit")):
        decode(model, few, ids)
        decode(model, many, ids)
    for one, other in zip(offloaded(few), offloaded(many), strict=True):
        pages = 2 * (LENGTH // PAGE)  # of two KV heads
        assert other.pages.fetched <= pages < one.pages.fetched
        assert one.pages.bytes() < other.pages.bytes()


def test_beams_assistants_cropping_and_conversion():
    model, draft, ids = tiny_model("llama"), tiny_model("llama", seed=5), tokens(1, 60)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, "do_sample": False}
    with gs.sparsified(model, varied(model, "lowbit")):
        for more in ({}, {"num_beams": 3}, {"assistant_model": draft}):
            theirs = model.generate(ids, **arguments, **more)
            ours = model.generate(ids, past_key_values=gs.SparseCache(model.config, hot_pages=2), **arguments, **more)
            assert torch.equal(ours, theirs)
        cache = gs.SparseCache(model.config, hot_pages=2)
        whole = decode(model, cache, ids, 40)
        cache.crop(-15)
        assert (decode(model, cache, ids[:, 45:], 1) - whole[:, 45:]).abs().max() <= TOLERANCE
        filled = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :40], past_key_values=filled)
    taken = [gs.SparseCache.from_cache(filled, model.config, hot_pages=hot) for hot in (None, 2)]
    assert offloaded(taken[1])
    with gs.sparsified(model, varied(model, "paged")):
        one, other = (decode(model, cache, ids[:, 40:], 1) for cache in taken)
    assert (one - other).abs().max() <= TOLERANCE


def test_a_dense_model_may_use_it_too():
    model, ids = tiny_model("llama"), tokens(2, 50)
    ours = decode(model, gs.SparseCache(model.config, hot_pages=1), ids, 30)
    assert (ours - decode(model, DynamicCache(config=model.config), ids, 30)).abs().max() <= TOLERANCE

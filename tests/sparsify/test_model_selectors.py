"""Whole models with every selector: pass, cache, batch and padding say the same, and the receipt is the plan."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geosparse as gs
from geosparse.ops import SELECTORS, TAILS

from ..tiny import EXTRA, MORE, WINDOW, tiny_model, tokens

KINDS = sorted(EXTRA | MORE)
LENGTH, PROMPT = 75, 50  # several complete pages, and pages that become complete while decoding
# fp32 rounding through two layers; another token kept moves logits by 1e-2 and more.
TOLERANCE = 1e-4
# Positions: where two scores are equal up to fp32's rounding, two ways of computing them may keep either.
NEAR_TIES = 1


def varied(model, selector, tail=None, **changes):
    """Every head another budget below the context."""
    tail = tail or ("centroid" if SELECTORS[selector].knows_rest else "renormalize")
    plan = gs.Plan.uniform(model, 1, tail, selector=selector)
    plan.n_keep.copy_(torch.arange(2, plan.n_keep.numel() + 2).view_as(plan.n_keep))
    return replace(plan, **changes)


def mixed(model, **changes):
    """Every head another selector, and a tail that goes with it."""
    plan = varied(model, "topn")
    places = torch.arange(plan.n_keep.numel()).view_as(plan.n_keep) % len(SELECTORS)
    blind = torch.tensor([not SELECTORS[name].knows_rest for name in SELECTORS])[places]
    tails = torch.where(blind, TAILS.index("renormalize"), torch.arange(plan.n_keep.shape[1]) % len(TAILS))
    return replace(plan, head_selectors=places, tail="best", head_tails=tails, **changes)


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def stepwise(model, ids, prompt, **kwargs):
    """Logits of a prefill of `prompt` tokens and of every token after it, through the cache."""
    with torch.no_grad():
        step = model(ids[:, :prompt], use_cache=True, **kwargs)
        pieces = [step.logits]
        for place in range(prompt, ids.shape[1]):
            step = model(ids[:, place : place + 1], past_key_values=step.past_key_values, use_cache=True)
            pieces.append(step.logits)
    return torch.cat(pieces, dim=1)


def same(a, b):
    """Equal up to rounding, near ties aside in fp32; in fp64 there are none."""
    others = int(((a - b).abs().amax(-1) > TOLERANCE).sum())
    return others <= (0 if a.dtype == torch.float64 else NEAR_TIES)


def check_cache(model, plan, ids, prompt=PROMPT):
    with gs.sparsified(model, plan) as receipt:
        whole = logits(model, ids)
        counted = receipt.kept
        assert torch.equal(counted, receipt.planned)
        receipt.reset()
        pieces = stepwise(model, ids, prompt)
        assert torch.equal(receipt.kept, counted)
    assert same(pieces, whole)
    return whole


def plans(model):
    return {selector: varied(model, selector) for selector in SELECTORS} | {"mixed": mixed(model)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("selector", [*SELECTORS, "mixed"])
def test_one_pass_cache_batch_and_padding_agree(kind, selector):
    model, ids = tiny_model(kind), tokens(4, LENGTH)
    dense, plan = logits(model, ids), plans(model)[selector]
    whole = check_cache(model, plan, ids)
    assert (whole - dense).abs().max() > 100 * TOLERANCE
    cuts = (0, 9, 30)
    with gs.sparsified(model, plan) as receipt:
        for row in range(4):
            assert same(logits(model, ids[row : row + 1]), whole[row : row + 1])
        receipt.reset()
        rows = [logits(model, ids[row : row + 1, cut:]) for row, cut in enumerate(cuts)]
        alone = receipt.kept
        receipt.reset()
        padded, mask = ids[:3].clone(), torch.ones(3, LENGTH, dtype=torch.long)
        for row, cut in enumerate(cuts):
            padded[row, :cut], mask[row, :cut] = 0, 0
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        together = logits(model, padded, attention_mask=mask, position_ids=positions)
        assert torch.equal(receipt.kept, alone)
    for row, cut in enumerate(cuts):
        assert same(together[row, cut:], rows[row][0])
    assert torch.equal(logits(model, ids), dense)


@pytest.mark.parametrize("kind", [*sorted(EXTRA), "phi3"])
def test_without_rounding_the_cache_keeps_the_same_tokens(kind):
    model = tiny_model(kind).double()
    check_cache(model, mixed(model), tokens(4, LENGTH))


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
@pytest.mark.parametrize("selector", [*SELECTORS, "mixed"])
def test_generation(kind, selector):
    model, draft, ids = tiny_model(kind), tiny_model("llama", seed=5), tokens(2, 44)
    arguments = {"max_new_tokens": 8, "do_sample": False}
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    with gs.sparsified(model, plans(model)[selector]) as receipt:
        greedy = model.generate(ids, attention_mask=mask, **arguments)
        for row, cut in ((0, 0), (1, 5)):
            expected = ids[row : row + 1, cut:]
            for _ in range(greedy.shape[1] - 44):
                expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
            ended = (greedy[row, 44:] == 2).cumsum(-1).cumsum(-1) > 1
            assert torch.equal(greedy[row, 44:].masked_fill(ended, 0), expected[0, 44 - cut :].masked_fill(ended, 0))
        single = {"attention_mask": torch.ones_like(ids[:1]), **arguments}
        alone = model.generate(ids[:1], **single)
        assert torch.equal(model.generate(ids[:1], assistant_model=draft, **single), alone)
        assert model.generate(ids, attention_mask=mask, num_beams=3, **arguments).shape[1] > 44
    assert receipt.density < 1


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("selector", ["topn", "lowbit", "paged"])
def test_budgets_that_grow(kind, selector):
    model, ids = tiny_model(kind), tokens(2, LENGTH)
    plan = varied(model, selector, reference_length=12)
    growth = torch.linspace(0, 1, plan.n_keep.numel(), dtype=torch.float64).view_as(plan.n_keep)
    plan = replace(plan, growth=growth)
    check_cache(model, plan, ids)
    with gs.sparsified(model, plan) as receipt:
        logits(model, ids)
    limit = WINDOW if kind == "mistral" else LENGTH
    for layer in range(2):
        for head, (n, power) in enumerate(zip(plan.n_keep[layer].tolist(), growth[layer].tolist(), strict=True)):
            seen = [min(place + 1, limit) for place in range(LENGTH)]
            expected = sum(min(v, int(n * max(1, v / 12) ** power + 0.5 + 1e-9)) for v in seen)
            assert receipt.kept[layer, head] == 2 * expected


@pytest.mark.parametrize("selector", ["topn", "lowbit"])
def test_shared_selections(selector):
    model, ids = tiny_model("llama"), tokens(2, LENGTH)
    plan = gs.Plan.uniform(model, 1, "centroid", selector=selector)
    plan.n_keep.copy_(torch.arange(3, 7).repeat_interleave(3).view(2, 6))
    shared = check_cache(model, replace(plan, share_kv=True), ids)
    with gs.sparsified(model, plan):
        assert (logits(model, ids) - shared).abs().max() > 100 * TOLERANCE


def test_layers_that_slide_are_exact_and_the_receipt_says_so():
    ids = tokens(1, LENGTH)
    for kind, layers in (("mistral", "layers 0-1"), ("gemma3_text", "layers 0")):
        model = tiny_model(kind)
        with gs.sparsified(model, varied(model, "lowbit")) as receipt:
            coded = logits(model, ids)
        why = f"topn, because a sliding window of {WINDOW} tokens has no pages"
        assert receipt.notes == [f"{layers}: {why}"]
        with gs.sparsified(model, varied(model, "topn")) as receipt:
            exact = logits(model, ids)
        assert receipt.notes == []
        assert torch.equal(coded, exact) == (kind == "mistral")


def test_a_dense_prefill_is_dense_and_decoding_behind_it_sparse():
    model, ids = tiny_model("llama"), tokens(2, LENGTH)
    dense, plan = logits(model, ids), varied(model, "lowbit")
    with gs.sparsified(model, plan, prefill="dense") as receipt:
        steps = stepwise(model, ids, PROMPT)
        assert "layers 0-1: dense, because prefill is dense" in receipt.notes
        assert torch.equal(receipt.kept, receipt.planned)
        prefilled = 2 * PROMPT * (PROMPT + 1) // 2
        assert torch.equal(receipt.kept - prefilled, 2 * (LENGTH - PROMPT) * plan.n_keep)
    assert (steps[:, :PROMPT] - dense[:, :PROMPT]).abs().max() <= TOLERANCE
    assert (steps[:, PROMPT:] - dense[:, PROMPT:]).abs().max() > 100 * TOLERANCE
    with pytest.raises(gs.GeosparseError, match="did you mean 'dense'"):
        gs.sparsify_(model, plan, prefill="dens")


@pytest.mark.parametrize("selector", SELECTORS)
def test_packed_sequences_under_a_mask_of_their_own(selector):
    model, ids = tiny_model("llama"), tokens(1, LENGTH)
    cut, places = 40, torch.arange(LENGTH)
    mask = (places[None] <= places[:, None]) & ((places[None] >= cut) == (places[:, None] >= cut))
    positions = torch.cat([torch.arange(cut), torch.arange(LENGTH - cut)])[None]
    indexed = SELECTORS[selector].indexed
    with gs.sparsified(model, varied(model, selector)) as receipt:
        packed = logits(model, ids, attention_mask=mask[None, None], position_ids=positions)
        assert receipt.notes == (
            ["layers 0-1: topn, because its mask is not a causal one with padding on the left"] if indexed else []
        )
    tail = "centroid" if SELECTORS[selector].knows_rest else "renormalize"
    with gs.sparsified(model, varied(model, "topn" if indexed else selector, tail)):
        for part in (slice(0, cut), slice(cut, LENGTH)):
            assert (logits(model, ids[:, part]) - packed[:, part]).abs().max() <= TOLERANCE


@given(st.data())
@settings(max_examples=15)
def test_any_plan_prefills_as_it_decodes(data):
    model = tiny_model("llama")
    heads = range(12)
    words = [data.draw(st.sampled_from(SELECTORS.names)) for _ in heads]
    tails = [data.draw(st.sampled_from(TAILS)) if SELECTORS[word].knows_rest else "renormalize" for word in words]
    plan = replace(
        gs.Plan.uniform(model, 1),
        n_keep=torch.tensor([data.draw(st.integers(1, 90)) for _ in heads]).view(2, 6),
        head_selectors=torch.tensor([SELECTORS.names.index(word) for word in words]).view(2, 6),
        head_tails=torch.tensor([TAILS.index(tail) for tail in tails]).view(2, 6),
        tail="best",
        growth=torch.tensor([data.draw(st.sampled_from([0.0, 0.5, 1.0])) for _ in heads]).double().view(2, 6),
        reference_length=data.draw(st.integers(1, 60)),
    )
    length = data.draw(st.integers(20, 70))
    check_cache(model, plan, tokens(1, length, seed=length), prompt=data.draw(st.integers(1, length - 3)))

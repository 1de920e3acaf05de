"""The growing cache is transformers' dynamic cache without the copying."""

import pytest
import torch
from transformers import DynamicCache

import geosparse as gs
from geosparse.ops.cpu import value_sum_of
from geosparse.sparsify.cache.growing import SPARE, GrowingLayer
from geosparse.sparsify.cache.sparse_cache import SparseCache

from ...tiny import EXTRA, tiny_model, tokens


def grows(cache):
    return {type(layer) for layer in cache.layers} == {GrowingLayer}


def states(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, length, 4, generator=generator), torch.randn(2, 3, length, 4, generator=generator)


def test_appending_equals_concatenation_and_rarely_copies():
    layer, parts, buffers = GrowingLayer(), [], set()
    for step in range(400):
        parts.append(states(50 if step == 0 else 1, seed=step))
        keys, values = layer.update(*parts[-1])
        buffers.add(layer._key_buffer.data_ptr())
    assert torch.equal(keys, torch.cat([key for key, _ in parts], dim=-2))
    assert torch.equal(values, torch.cat([value for _, value in parts], dim=-2))
    assert layer.get_seq_length() == 449
    assert len(buffers) <= 8


def test_memory_stays_within_its_spare_room():
    layer = GrowingLayer()
    layer.update(*states(4000))
    for step in range(600):
        layer.update(*states(1, seed=step))
        assert layer._key_buffer.shape[-2] <= (1 + SPARE) * layer.get_seq_length() + 64


@pytest.mark.parametrize("change", ["crop", "reorder", "select", "repeat", "reset"])
def test_changes_then_growth_equal_the_dynamic_layer(change):
    ours, theirs = GrowingLayer(), DynamicCache().layer_class_to_replicate()
    for layer in (ours, theirs):
        layer.update(*states(20))
        layer.update(*states(3, seed=1))
        if change == "crop":
            layer.crop(-7)
        elif change == "reorder":
            layer.reorder_cache(torch.tensor([1, 0]))
        elif change == "select":
            layer.batch_select_indices(torch.tensor([1]))
        elif change == "repeat":
            layer.batch_repeat_interleave(2)
        else:
            layer.reset()
    batch = {"select": 1, "repeat": 4}.get(change, 2)
    new = torch.randn(batch, 3, 5, 4)
    for layer in (ours, theirs):
        layer.update(new, new)
        layer.update(new[..., :1, :], new[..., :1, :])
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)


def test_a_layer_cropped_to_nothing_takes_another_batch():
    layer = GrowingLayer()
    layer.update(*states(20))
    layer.crop(-20)
    new = torch.randn(5, 3, 4, 4)
    keys, values = layer.update(new, new)
    assert torch.equal(keys, new)
    assert torch.equal(values, new)


def test_the_sum_of_values_does_not_drift():
    layer, whole = GrowingLayer(), []
    for step in range(300):
        new = states(40 if step == 0 else 1, seed=step)
        whole.append(new[1])
        if step == 200:
            layer.crop(-5)
            whole = [torch.cat(whole[:-1], dim=-2)[..., :-5, :], new[1]]
        _, values = layer.update(*new)
        assert (value_sum_of(values, (0,)) - torch.cat(whole, dim=-2).double().sum(-2)).abs().max() <= 1e-9


def test_unfilled_room_is_never_read():
    layer = GrowingLayer()
    layer.update(*states(10))
    layer._key_buffer[..., 10:, :] = torch.nan
    layer._value_buffer[..., 10:, :] = torch.nan
    keys, values = layer.update(*states(1, seed=3))
    assert torch.isfinite(keys).all()
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_same_logits_as_the_dynamic_cache(kind):
    model = tiny_model(kind)
    ids = tokens(2, 40)
    outputs = []
    for cache in (DynamicCache(config=model.config), SparseCache(model.config)):
        with torch.no_grad():
            pieces = [model(ids[:, :25], past_key_values=cache).logits]
            pieces += [model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(25, 40)]
        outputs.append(torch.cat(pieces, dim=1))
    assert (outputs[0] - outputs[1]).abs().max() <= 1e-6


def test_a_filled_dynamic_cache_is_taken_over():
    model = tiny_model("llama")
    ids = tokens(1, 30)
    with torch.no_grad():
        whole = model(ids).logits
        cache = model(ids[:, :29], use_cache=True).past_key_values
        ours = SparseCache.from_cache(cache, model.config)
        last = model(ids[:, 29:], past_key_values=ours).logits
    assert (last[:, 0] - whole[:, -1]).abs().max() <= 1e-5
    assert cache.get_seq_length() == 29
    assert not grows(cache)


def test_a_sparsified_model_uses_it_by_itself_and_a_restored_one_does_not():
    model = tiny_model("llama")
    ids = tokens(1, 20)
    arguments = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    arguments["attention_mask"] = torch.ones_like(ids)
    with gs.sparsified(model, gs.Plan.uniform(model, 3)):
        assert grows(model.generate(ids, **arguments).past_key_values)
        with torch.no_grad():
            assert isinstance(model(ids, use_cache=True).past_key_values, SparseCache)
            assert model(ids, use_cache=False).past_key_values is None
            for own in (DynamicCache(config=model.config), DynamicCache()):
                model(ids[:, :5], past_key_values=own)
                model(ids[:, 5:8], past_key_values=own)
                assert own.get_seq_length() == 8
                assert grows(own)
    assert not grows(model.generate(ids, **arguments).past_key_values)
    assert not model._forward_pre_hooks


def test_a_static_cache_of_the_callers_works_and_the_receipt_says_once_that_it_is_slower():
    model, ids = tiny_model("llama"), tokens(1, 40)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    for selector in ("topn", "lowbit"):
        with gs.sparsified(model, gs.Plan.uniform(model, 3, "centroid", selector=selector)) as receipt:
            static = model.generate(ids, cache_implementation="static", **arguments)
            said = "slower, because a StaticLayer of the caller's own cache neither grows in place nor keeps an index"
            assert [said in note for note in receipt.notes].count(True) == 1
        exact = gs.Plan.uniform(model, 3, "centroid")  # keys behind the end have no pages, and the receipt says so
        with gs.sparsified(model, exact) as receipt:
            assert torch.equal(static, model.generate(ids, **arguments))
            assert receipt.notes == []


def test_beams_assisted_and_contrastive_lengths():
    model, draft = tiny_model("llama"), tiny_model("llama", seed=3)
    ids = tokens(1, 24)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False}
    with gs.sparsified(model, gs.Plan.uniform(model, 4, "centroid")):
        greedy = model.generate(ids, **arguments)
        assisted = model.generate(ids, assistant_model=draft, **arguments)
        beams = model.generate(ids, num_beams=4, **arguments)
    assert torch.equal(greedy, assisted)
    assert beams.shape[1] > 24

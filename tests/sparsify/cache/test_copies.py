"""Copies of caches and of sparsified models go on alone, in this process and out of a file."""

import copy
import io
import pickle

import pytest
import torch
from transformers import DynamicCache

import geosparse as gs
from geosparse.ops import PAGE
from geosparse.sparsify.cache.dense_keys import CachedKeys
from geosparse.sparsify.cache.growing import GrowingLayer

from ...tiny import tiny_model, tokens

KINDS = ["llama", "gemma3_text", "mistral"]
MAKERS = {
    "dynamic": lambda model: DynamicCache(config=model.config),
    "without a config": lambda model: DynamicCache(),
    "sparse": lambda model: gs.SparseCache(model.config),
    "offloaded": lambda model: gs.SparseCache(model.config, hot_pages=2),
}
PROMPT = 3 * PAGE + 5


def pickled(thing):
    return pickle.loads(pickle.dumps(thing))  # noqa: S301 - our own bytes


def through_file(thing):
    """By torch.save."""
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "from_cache": gs.SparseCache.from_cache,
    "from_cache, offloaded": lambda cache, config: gs.SparseCache.from_cache(cache, config, hot_pages=1),
    "deepcopy": lambda cache, config: copy.deepcopy(cache),
    "pickle": lambda cache, config: pickled(cache),
    "torch.save": lambda cache, config: through_file(cache),
}


def plan_of(model, selector="paged+lowbit", tail="blend50"):
    return gs.Plan.uniform(model, 4, tail, selector=selector)


def decode(model, cache, ids):
    """Logits of `ids`, a token at a time."""
    with torch.no_grad():
        return torch.cat([model(ids[:, i : i + 1], past_key_values=cache).logits for i in range(ids.shape[1])], dim=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("way", COPIES)
def test_a_copied_cache_and_its_original_go_on_alone(kind, name, way):
    model, prompt = tiny_model(kind), tokens(2, PROMPT)
    one, other = tokens(2, PAGE + 3, seed=1), tokens(2, PAGE + 3, seed=2)
    with gs.sparsified(model, plan_of(model)):

        def filled():
            cache = MAKERS[name](model)
            with torch.no_grad():
                model(prompt, past_key_values=cache)
            decode(model, cache, prompt[:, :2])
            return cache

        expected = [decode(model, filled(), ids) for ids in (one, other)]
        cache = filled()
        twin = COPIES[way](cache, model.config)
        if kind == "llama":  # transformers' sliding layers are not cropped beyond their window
            twin.crop(-3)
        decode(model, twin, other[:, :3])
        again = COPIES[way](cache, model.config)
        found = [decode(model, cache, one), decode(model, again, other)]
        assert cache.get_seq_length() == again.get_seq_length() == PROMPT + 2 + PAGE + 3
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4


def test_shallow_copies_too():
    model, prompt, ids = tiny_model(), tokens(1, PROMPT), tokens(1, 9, seed=1)
    with gs.sparsified(model, plan_of(model)):
        cache = gs.SparseCache(model.config)
        with torch.no_grad():
            model(prompt, past_key_values=cache)
        twin = copy.copy(cache)
        layers = DynamicCache(config=model.config)
        layers.layers = [copy.copy(layer) for layer in cache.layers]
        expected = decode(model, copy.deepcopy(cache), ids)
        for each in (twin, layers, cache):
            assert torch.equal(decode(model, each, ids), expected)


def test_a_stored_cache_holds_filled_tokens_only_and_plain_tensors():
    model = tiny_model()
    cache = gs.SparseCache(model.config)
    with gs.sparsified(model, plan_of(model)), torch.no_grad():
        model(tokens(1, 40), past_key_values=cache)
    assert cache.layers[0]._key_buffer.shape[-2] > 40
    stored = pickle.dumps(cache.layers[0])
    held = 2 * cache.layers[0].keys.numel() * 4 + cache.layers[0].slot.index.bytes()
    assert len(stored) < held + 6000
    layer = pickled(cache.layers[0])
    assert type(layer.keys) is torch.Tensor
    assert layer.keys.is_contiguous()
    assert torch.equal(layer.keys, cache.layers[0].keys)
    assert layer.slot.index.pages == cache.layers[0].slot.index.pages


def test_keys_for_a_dense_model_are_copied_and_stored_as_plain_tensors():
    keys = torch.randn(1, 2, 5, 4).as_subclass(CachedKeys)
    for made in (copy.deepcopy(keys), pickled(keys), through_file(keys)):
        assert type(made) is torch.Tensor
        assert torch.equal(made, keys.as_subclass(torch.Tensor))


def test_what_is_no_decoders_cache_is_refused():
    model = tiny_model()
    with pytest.raises(gs.GeosparseError, match="found tuple"):
        gs.SparseCache.from_cache(((torch.zeros(1, 2, 3, 4),) * 2,), model.config)


def test_a_gradient_goes_through_copies():
    layer = GrowingLayer()
    key = torch.randn(1, 2, 5, 4, requires_grad=True)
    layer.update(key * 2, key * 3)
    for twin in (copy.copy(layer), copy.deepcopy(layer)):
        keys, values = twin.update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
        (found,) = torch.autograd.grad((keys + values).sum(), key, retain_graph=True)
        assert torch.equal(found, torch.full_like(key, 5.0))


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_a_copied_model_counts_for_itself_and_either_is_restored_alone(way):
    model, ids = tiny_model(), tokens(1, 40)
    dense = logits(model, ids)
    receipt = gs.sparsify_(model, plan_of(model))
    sparse = logits(model, ids)
    made = {"deepcopy": copy.deepcopy, "pickle": pickled, "torch.save": through_file}
    first, second = made[way](model), made[way](model)
    assert torch.equal(logits(first, ids), sparse)
    assert int(receipt.queries[0, 0]) == 40
    gs.restore_(first)
    assert torch.equal(logits(first, ids), dense)
    assert torch.equal(logits(model, ids), sparse)
    gs.restore_(model)
    assert torch.equal(logits(model, ids), dense)
    assert torch.equal(logits(second, ids), sparse)
    gs.restore_(second)
    assert not second._forward_pre_hooks


def test_a_stored_model_is_sparse_in_a_process_that_has_sparsified_none(tmp_path):
    import subprocess
    import sys

    model, ids = tiny_model(), tokens(1, 40)
    gs.sparsify_(model, plan_of(model))
    torch.save((model, ids, logits(model, ids)), tmp_path / "model.pt")
    code = (
        "import sys, torch; model, ids, expected = torch.load(sys.argv[1], weights_only=False)\n"
        "with torch.no_grad(): assert (model(ids, use_cache=False).logits - expected).abs().max() < 1e-6\n"
        "import geosparse; geosparse.restore_(model)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True)


def test_a_copy_of_a_compiled_model_serves_itself():
    model, ids = tiny_model(), tokens(1, 24)
    receipt = gs.sparsify_(model, gs.Plan.uniform(model, 4, "centroid"))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    expected = logits(compiled, ids)
    twin = copy.deepcopy(model)
    inside = copy.deepcopy(compiled)
    for made in (torch.compile(twin, backend="eager"), inside):
        assert torch.equal(logits(made, ids), expected)
        assert int(receipt.queries[0, 0]) == 24
    gs.restore_(model)
    del model, compiled
    assert torch.equal(logits(torch.compile(twin, backend="eager"), ids), expected)
    torch._dynamo.reset()

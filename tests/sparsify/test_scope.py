"""What a patch leaves of models and caches: after exceptions, across autograd's modes, in training."""

import threading

import pytest
import torch
from transformers import DynamicCache

import geosparse as gs
from geosparse.hf.interface import ATTRIBUTE
from geosparse.ops import PAGE, SELECTORS
from geosparse.sparsify import patch
from geosparse.sparsify.cache.growing import GrowingLayer

from ..tiny import tiny_model, tokens

PROMPT = 2 * PAGE + 7
MODES = {"inference": torch.inference_mode, "no_grad": torch.no_grad, "grad": torch.enable_grad}


def plan_of(model, selector="topn", tail="blend50"):
    return gs.Plan.uniform(model, 4, tail if SELECTORS[selector].knows_rest else "renormalize", selector=selector)


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def state(model):
    """All that a patch may change."""
    tables = (model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs)
    return (
        [(type(module), sorted(module.__dict__)) for module in model.modules()],
        [list(table) for table in tables],
        model.config._attn_implementation,
    )


class Broken(Exception):
    pass


def broken(*args, **kwargs):
    raise Broken


STEPS = ["check_reproduces", "Receipt", "rules_of", "_break_even", "SparseAttention", "install", "install_products"]


@pytest.mark.parametrize("step", [*STEPS, "hook", "half of the products"])
def test_sparsify_is_whole_or_not_at_all(step, monkeypatch):
    model, ids = tiny_model(), tokens(1, 30)
    before, dense = state(model), logits(model, ids)
    with monkeypatch.context() as patched:
        if step == "hook":
            patched.setattr(type(model), "register_forward_pre_hook", broken)
        elif step == "half of the products":
            patched.setattr("geosparse.sparsify.linear.install_norms", broken)
        else:
            patched.setattr(patch, step, broken)
        with pytest.raises(Broken):
            gs.sparsify_(model, plan_of(model), dense_below="measured" if step == "_break_even" else 0)
    assert state(model) == before
    assert torch.equal(logits(model, ids), dense)
    gs.sparsify_(model, plan_of(model))
    gs.restore_(model)
    assert state(model) == before


@pytest.mark.parametrize("step", ["uninstall", "remove_products"])
def test_restore_is_whole_or_not_at_all(step, monkeypatch):
    model, ids = tiny_model(), tokens(1, 30)
    dense = state(model)
    receipt = gs.sparsify_(model, plan_of(model))
    before, sparse = state(model), logits(model, ids)
    with monkeypatch.context() as patched:
        patched.setattr(patch, step, broken)
        with pytest.raises(Broken):
            gs.restore_(model)
    assert state(model) == before
    assert torch.equal(logits(model, ids), sparse)
    assert int(receipt.queries[0, 0]) == 60
    gs.restore_(model)
    assert state(model) == dense


def test_an_exception_in_a_forward_leaves_a_receipt_that_counts_on():
    model, ids = tiny_model(), tokens(1, 30)
    before = state(model)
    with pytest.raises(Broken), gs.sparsified(model, plan_of(model)) as receipt:  # noqa: PT012 - the block is the test
        logits(model, ids)
        hook = model.model.layers[1].register_forward_pre_hook(broken)
        try:
            with pytest.raises(Broken):
                logits(model, ids)
        finally:
            hook.remove()
        receipt.verify()
        logits(model, ids)
        receipt.verify()
        raise Broken
    assert state(model) == before


def test_a_model_that_shares_layers_with_a_sparse_one_is_refused():
    first, second = tiny_model(), tiny_model(seed=1)
    second.model = first.model
    ids = tokens(1, 30)
    with gs.sparsified(first, plan_of(first)):
        sparse = logits(first, ids)
        with pytest.raises(gs.GeosparseError, match="already"):
            gs.sparsify_(second, plan_of(second))
        assert torch.equal(logits(first, ids), sparse)
    assert not any(ATTRIBUTE in module.__dict__ for module in second.modules())


def test_another_patch_inside_the_block_is_noticed():
    model = tiny_model()
    with pytest.raises(gs.GeosparseError, match="anew"), gs.sparsified(model, plan_of(model)):  # noqa: PT012 - it ends so
        gs.restore_(model)
        gs.sparsify_(model, plan_of(model))


@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("make", ["dynamic", "sparse", "offloaded"])
@pytest.mark.parametrize("change", [None, "crop", "reorder"])
def test_a_cache_goes_from_any_mode_to_any_other(selector, make, change):
    model, ids = tiny_model(), tokens(2, PROMPT + 3 * PAGE)
    modes = [*MODES.values(), torch.inference_mode]
    makers = {
        "dynamic": lambda: DynamicCache(config=model.config),
        "sparse": lambda: gs.SparseCache(model.config),
        "offloaded": lambda: gs.SparseCache(model.config, hot_pages=2),
    }

    def run(modes):
        cache, found, place = makers[make](), [], PROMPT
        with modes[0]():
            model(ids[:, :PROMPT], past_key_values=cache)
        for mode in modes[1:] * 2:
            with mode():
                if change == "crop":
                    cache.crop(-2)
                elif change == "reorder":
                    cache.reorder_cache(torch.tensor([1, 0]))
                for _ in range(PAGE // 3):
                    found.append(model(ids[:, place : place + 1], past_key_values=cache).logits.clone())
                    place += 1
        return torch.cat(found, dim=1)

    with gs.sparsified(model, plan_of(model, selector)) as receipt:
        expected = run([torch.no_grad] * 4)
        for order in (modes, modes[::-1]):
            assert (run(order) - expected).abs().max() <= 1e-5
        with torch.inference_mode():
            receipt.reset()
            run([torch.inference_mode] * 2)
        run([torch.no_grad] * 2)
        receipt.verify()


def test_positional_calls_are_those_by_name():
    model, ids, more = tiny_model(), tokens(1, 20), tokens(1, 3, seed=1)
    with gs.sparsified(model, plan_of(model)), torch.no_grad():
        caches = [DynamicCache(config=model.config) for _ in range(3)]
        model(ids, past_key_values=caches[0])
        model(ids, None, None, caches[1])
        model.forward(ids, None, None, caches[2])
        assert all(type(layer) is GrowingLayer for layer in caches[1].layers)
        expected = model(more, past_key_values=caches[0]).logits
        assert torch.equal(model(more, None, None, caches[1]).logits, expected)
        assert (model.forward(more, None, None, caches[2]).logits - expected).abs().max() <= 1e-5
        assert model(ids, None, None, None, None, None, False).past_key_values is None
        for call in (model(ids, None, None, None), model(ids, None, None, None, None, None, True)):
            assert isinstance(call.past_key_values, gs.SparseCache)
        assert isinstance(model(ids, use_cache=None).past_key_values, gs.SparseCache)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_a_callers_own_cache_inside_and_after_the_block(kind):
    """Dense, sparse, another plan, dense again, on the same cache: each step as on a cache of concatenated tokens."""
    model, ids = tiny_model(kind), tokens(2, PROMPT + 40)
    plans = [plan_of(model, "lowbit", "centroid"), None, plan_of(model, "paged", "blend50"), None, plan_of(model)]

    def run(cache, renew):
        found, place = [logits(model, ids[:, :PROMPT], past_key_values=cache)[:, -1:]], PROMPT
        for plan in plans:
            receipt = None if plan is None else gs.sparsify_(model, plan)
            for _ in range(8):
                found.append(logits(model, ids[:, place : place + 1], past_key_values=cache))
                if renew:
                    cache = gs.SparseCache.from_cache(cache, model.config)
                place += 1
            if receipt is not None:
                gs.restore_(model)
        return torch.cat(found, dim=1)

    own = DynamicCache(config=model.config)
    assert (run(own, False) - run(DynamicCache(config=model.config), True)).abs().max() <= 1e-5
    assert own.get_seq_length() == PROMPT + 40
    assert any(type(layer) is GrowingLayer for layer in own.layers)


MAKERS = pytest.mark.parametrize(
    "make", [lambda config: DynamicCache(config=config), gs.SparseCache], ids=["dynamic", "sparse"]
)


def gradients(model, *losses):
    model.zero_grad()
    sum(losses).backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def apart(found, true):
    return max(float((one - other).norm() / other.norm()) for one, other in zip(found, true, strict=True))


@MAKERS
def test_training_over_a_cache_is_training_without(make):
    model, ids = tiny_model().requires_grad_(True).train(), tokens(2, 40)
    with gs.sparsified(model, plan_of(model, "lowbit")):
        true = gradients(model, model(ids, use_cache=False).logits.square().sum())
        cache = make(model.config)
        parts = [model(part, past_key_values=cache).logits.square().sum() for part in ids.split([25, 1, 14], dim=1)]
        assert apart(gradients(model, *parts), true) <= 1e-4


@MAKERS
def test_training_over_a_cache_that_is_cropped_and_written_over_is_as_with_transformers_own(make):
    model, ids = tiny_model().requires_grad_(True).train(), tokens(2, 40)

    def losses(cache):
        first = model(ids[:, :25], past_key_values=cache).logits.square().sum()
        logits(model, ids[:, :2], past_key_values=cache)
        cache.crop(-5)
        second = model(ids[:, :9], past_key_values=cache).logits.square().sum()
        logits(model, ids[:, :2], past_key_values=cache)
        return first, second

    true = gradients(model, *losses(DynamicCache(config=model.config)))
    with gs.sparsified(model, gs.Plan.uniform(model, 100)):
        assert apart(gradients(model, *losses(make(model.config))), true) <= 1e-4
    if make is gs.SparseCache:
        assert apart(gradients(model, *losses(make(model.config))), true) <= 1e-4


@pytest.mark.parametrize("prefill", ["exact", "dense", "block"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gemma3_text", "gpt_oss"])
def test_adapters_of_queries_alone_over_a_cache_that_is_written_over(kind, prefill):
    model, ids = tiny_model(kind), tokens(2, 40)
    weights = [layer.self_attn.q_proj.weight.requires_grad_(True) for layer in model.model.layers]

    def gradients(**kwargs):
        loss = model(ids, **kwargs).logits.square().mean()
        if kwargs["use_cache"]:
            kwargs["past_key_values"].crop(-1) if kind == "llama" else None
            logits(model, ids[:, :1], past_key_values=kwargs["past_key_values"])
        return torch.autograd.grad(loss, weights)

    with gs.sparsified(model, plan_of(model), prefill):
        true = gradients(use_cache=False)
        found = gradients(use_cache=True, past_key_values=DynamicCache(config=model.config))
    for one, other in zip(found, true, strict=True):
        assert other.norm() > 0
        assert (one - other).norm() <= 1e-4 * other.norm()


def test_checkpointing_counts_each_query_once():
    model, ids = tiny_model().requires_grad_(True).train(), tokens(2, 30)
    for reentrant in (True, False):
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": reentrant})
        with gs.sparsified(model, plan_of(model)) as receipt:
            model(ids, labels=ids, use_cache=False).loss.backward()
            assert torch.all(receipt.queries == 60)


def test_pausing_in_threads_that_overlap_ends():
    model, ids = tiny_model(), tokens(1, 10)
    with gs.sparsified(model, plan_of(model)) as receipt:
        entered, leave = threading.Event(), threading.Event()

        def pause():
            with receipt.paused():
                entered.set()
                leave.wait(30)
                logits(model, ids)

        thread = threading.Thread(target=pause)
        with receipt.paused():
            thread.start()
            entered.wait(30)
        logits(model, ids)
        leave.set()
        thread.join()
        assert torch.all(receipt.queries == 10)
        logits(model, ids)
        assert torch.all(receipt.queries == 20)

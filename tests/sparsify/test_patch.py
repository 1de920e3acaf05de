"""A sparsified model: dense at full budget, exact below it, on every architecture, cache, batch and way to call it."""

import copy
import gc
import threading
import weakref

import pytest
import torch

import geosparse as gs
from geosparse.hf.interface import ATTRIBUTE, NAME
from geosparse.ops import TAILS

from ..tiny import EXTRA, WINDOW, tiny_model, tokens

KINDS = sorted(EXTRA)


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def varied_plan(model, tail="centroid"):
    """Every head another budget, below the context."""
    plan = gs.Plan.uniform(model, 1, tail)
    plan.n_keep.copy_(torch.arange(1, plan.n_keep.numel() + 1).view_as(plan.n_keep))
    return plan


@pytest.fixture(params=KINDS)
def model(request):
    return tiny_model(request.param)


@pytest.mark.parametrize("tail", TAILS)
def test_full_budget_gives_dense_logits(model, tail):
    ids = tokens(2, 51)
    dense = logits(model, ids)
    with gs.sparsified(model, gs.Plan.uniform(model, 51, tail)):
        assert (logits(model, ids) - dense).abs().max() <= 1e-4
    with gs.sparsified(model, gs.Plan.uniform(model, 10**6, tail)):
        assert (logits(model, ids) - dense).abs().max() <= 1e-4


def test_small_budget_changes_the_logits(model):
    ids = tokens(1, 51)
    dense = logits(model, ids)
    with gs.sparsified(model, gs.Plan.uniform(model, 2)):
        assert (logits(model, ids) - dense).abs().max() > 1e-2


def test_restored_model_is_untouched_bit_for_bit(model):
    ids = tokens(2, 40)
    before = logits(model, ids)
    implementation = model.config._attn_implementation
    keys = {module: set(module.__dict__) for module in model.modules()}
    gs.sparsify_(model, varied_plan(model))
    assert model.config._attn_implementation == NAME
    logits(model, ids)
    gs.restore_(model)
    assert model.config._attn_implementation == implementation
    assert keys == {module: set(module.__dict__) for module in model.modules()}
    assert torch.equal(logits(model, ids), before)


def test_restored_after_an_exception(model):
    ids = tokens(1, 20)
    before = logits(model, ids)
    with pytest.raises(RuntimeError, match="mine"), gs.sparsified(model, varied_plan(model)):
        raise RuntimeError("mine")
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("tail", TAILS)
def test_token_by_token_through_the_cache_equals_one_pass(model, tail):
    ids = tokens(2, 45)
    with gs.sparsified(model, varied_plan(model, tail)) as receipt:
        whole = logits(model, ids)
        counted = receipt.kept.clone()
        receipt.reset()
        with torch.no_grad():
            step = model(ids[:, :20], use_cache=True)
            pieces = [step.logits]
            for position in range(20, 45):
                step = model(ids[:, position : position + 1], past_key_values=step.past_key_values, use_cache=True)
                pieces.append(step.logits)
        assert torch.equal(receipt.kept, counted)
    assert (torch.cat(pieces, dim=1) - whole).abs().max() <= 1e-4


def test_chunked_prefill_equals_one_pass(model):
    ids = tokens(1, 50)
    with gs.sparsified(model, varied_plan(model)), torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :23], use_cache=True)
        rest = model(ids[:, 23:], past_key_values=first.past_key_values, use_cache=True)
    assert (torch.cat([first.logits, rest.logits], dim=1) - whole).abs().max() <= 1e-4


@pytest.mark.parametrize("tail", TAILS)
def test_left_padded_batch_equals_single_rows(model, tail):
    lengths = [44, 29, 7]
    rows = [tokens(1, length, seed=length)[0] for length in lengths]
    width = max(lengths)
    ids = torch.stack([torch.cat([torch.zeros(width - len(row), dtype=torch.long), row]) for row in rows])
    mask = torch.stack([(torch.arange(width) >= width - length).long() for length in lengths])
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with gs.sparsified(model, varied_plan(model, tail)) as receipt:
        batch = logits(model, ids, attention_mask=mask, position_ids=positions)
        together = receipt.kept.clone()
        receipt.reset()
        for index, row in enumerate(rows):
            alone = logits(model, row[None])
            assert (batch[index, width - len(row) :] - alone[0]).abs().max() <= 1e-4
        assert torch.equal(receipt.kept, together)


def test_receipt_is_the_plan(model):
    ids = tokens(2, 41)
    plan = varied_plan(model)
    with gs.sparsified(model, plan) as receipt:
        logits(model, ids)
    window_of = getattr(model.config, "sliding_window", None)
    kinds = getattr(model.config, "layer_types", None) or ["sliding_attention"] * 2
    for layer, kind in enumerate(kinds):
        window = window_of if kind == "sliding_attention" else None
        visible = torch.arange(1, 42).clamp_max(window or 41)
        assert torch.all(receipt.queries[layer] == 2 * 41)
        assert torch.all(receipt.visible[layer] == 2 * visible.sum())
        for head, budget in enumerate(plan.n_keep[layer].tolist()):
            assert receipt.kept[layer, head] == 2 * visible.clamp_max(budget).sum()
    assert receipt.density == pytest.approx(int(receipt.kept.sum()) / int(receipt.visible.sum()))


def test_generate_below_the_context_greedy_and_beams(model):
    ids = tokens(2, 30)
    with gs.sparsified(model, gs.Plan.uniform(model, 4, "centroid")) as receipt:
        greedy = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        expected = ids
        for _ in range(greedy.shape[1] - 30):
            expected = torch.cat([expected, logits(model, expected)[:, -1:].argmax(-1)], dim=1)
        beams = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, num_beams=3, do_sample=False)
    assert greedy.shape[1] > 30
    ended = (greedy[:, 30:] == 2).cumsum(-1).cumsum(-1) > 1
    assert torch.equal(greedy[:, 30:].masked_fill(ended, 0), expected[:, 30:].masked_fill(ended, 0))
    assert beams.shape[1] > 30
    assert receipt.mean_kept < 4


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_static_cache(kind):
    model = tiny_model(kind)
    ids = tokens(1, 30)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
    with gs.sparsified(model, varied_plan(model)):
        dynamic = model.generate(ids, **arguments)
        static = model.generate(ids, cache_implementation="static", disable_compile=True, **arguments)
    assert torch.equal(dynamic, static)


def test_eager_model_is_restored_to_eager():
    model = tiny_model("llama")
    model.set_attn_implementation("eager")
    ids = tokens(1, 33)
    before = logits(model, ids)
    with gs.sparsified(model, gs.Plan.uniform(model, 99)):
        assert (logits(model, ids) - before).abs().max() <= 1e-4
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, ids), before)


def test_bfloat16_stays_within_its_rounding():
    model = tiny_model("llama")
    ids = tokens(1, 64)
    plan = varied_plan(model)
    with gs.sparsified(model, plan):
        exact = logits(model, ids)
    model = model.to(torch.bfloat16)
    dense_error = (logits(model, ids).float() - logits(tiny_model("llama"), ids)).abs().max()
    with gs.sparsified(model, plan):
        error = (logits(model, ids).float() - exact).abs().max()
    # Near-ties may be picked differently; the same-dtype dense model sets the scale.
    assert error <= 4 * dense_error + 0.05 * exact.abs().max()


def test_a_plan_for_another_model_is_refused():
    plan = varied_plan(tiny_model("llama"))
    other = tiny_model("llama", seed=1)
    with pytest.raises(gs.GeosparseError, match="another model"):
        gs.sparsify_(other, plan)
    assert other.config._attn_implementation == "sdpa"


def test_twice_is_refused_and_so_is_restoring_a_dense_model():
    model = tiny_model("llama")
    gs.sparsify_(model, varied_plan(model))
    with pytest.raises(gs.GeosparseError, match="already"):
        gs.sparsify_(model, varied_plan(model))
    gs.restore_(model)
    with pytest.raises(gs.GeosparseError, match="nothing to restore"):
        gs.restore_(model)


def test_running_dense_in_the_block_is_noticed():
    model = tiny_model("llama")
    with pytest.raises(gs.GeosparseError, match="ran dense"), gs.sparsified(model, varied_plan(model)):
        model.set_attn_implementation("sdpa")
    assert model.config._attn_implementation == "sdpa"


def test_an_unreached_layer_is_noticed():
    model = tiny_model("llama")
    receipt = gs.sparsify_(model, varied_plan(model))
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    logits(model, tokens(1, 10))
    with pytest.raises(gs.GeosparseError, match=r"layers\.1\.self_attn was not reached"):
        receipt.verify()


def test_a_wrong_count_is_noticed(monkeypatch):
    from geosparse import ops
    from geosparse.sparsify import attention

    def lying(call, rules):
        result = ops.attend(call, rules)
        return result._replace(kept=result.kept + 1)

    model = tiny_model("llama")
    plan = varied_plan(model)
    gs.sparsify_(model, plan)
    gs.restore_(model)
    monkeypatch.setitem(attention.SERVERS, "selected", lying)
    with pytest.raises(gs.GeosparseError, match=r"kept .* tokens where the plan says"), gs.sparsified(model, plan):
        logits(model, tokens(1, 10))


def test_two_models_with_two_plans_do_not_mix():
    first, second = tiny_model("llama"), tiny_model("qwen3")
    ids = tokens(1, 30)
    with gs.sparsified(first, gs.Plan.uniform(first, 2)) as a:
        alone = logits(first, ids)
        a.reset()
        with gs.sparsified(second, gs.Plan.uniform(second, 5)) as b:
            logits(second, ids)
            assert torch.equal(logits(first, ids), alone)
        assert a.mean_kept < 2
        assert b.mean_kept > 4
        assert torch.equal(logits(first, ids), alone)


def test_threads_share_a_sparsified_model():
    model = tiny_model("llama")
    batches = [tokens(1, 20 + seed, seed=seed) for seed in range(8)]
    with gs.sparsified(model, varied_plan(model)) as receipt:
        serial = [logits(model, ids) for ids in batches]
        counted = receipt.kept.clone()
        receipt.reset()
        parallel = [None] * len(batches)

        def work(index):
            parallel[index] = logits(model, batches[index])

        threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(receipt.kept, counted)
    assert all(torch.equal(a, b) for a, b in zip(serial, parallel, strict=True))


def test_hundred_rounds_leave_no_residue():
    model = tiny_model("llama")
    plan = varied_plan(model)
    for _ in range(100):
        with gs.sparsified(model, plan):
            pass
    assert not any(ATTRIBUTE in module.__dict__ for module in model.modules())
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None


def test_a_copy_of_a_sparsified_model_is_independent():
    model = tiny_model("llama")
    ids = tokens(1, 25)
    with gs.sparsified(model, varied_plan(model)) as receipt:
        twin = copy.deepcopy(model)
        assert torch.equal(logits(twin, ids), logits(model, ids))
        assert torch.all(receipt.queries == 25)
    gs.restore_(twin)
    assert torch.equal(logits(twin, ids), logits(model, ids))


def test_dropout_and_training_are_refused():
    model = tiny_model("llama", attention_dropout=0.1).train()
    with pytest.raises(gs.GeosparseError, match="dropout"), gs.sparsified(model, varied_plan(model)):
        model(tokens(1, 10))


def test_sliding_window_layers_see_only_their_window():
    model = tiny_model("mistral")
    with gs.sparsified(model, gs.Plan.uniform(model, 10**6)) as receipt:
        logits(model, tokens(1, 3 * WINDOW))
    assert receipt.kept.max() == receipt.visible.max() == torch.arange(1, 3 * WINDOW + 1).clamp_max(WINDOW).sum()


def test_a_library_that_wraps_every_registered_attention_passes_dropout_by_position(monkeypatch) -> None:
    """As kvpress does to all functions that are registered when it is imported."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model, ids = tiny_model(), tokens(1, 20)
    plan = gs.Plan.uniform(model, 4)
    with gs.sparsified(model, plan), torch.no_grad():
        expected = model(ids).logits
        plain = ALL_ATTENTION_FUNCTIONS[NAME]

        def wrapper(module, query, key, value, attention_mask, dropout, **kwargs):
            return plain(module, query, key, value, attention_mask, dropout, **kwargs)

        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, NAME, wrapper)
        assert torch.equal(model(ids).logits, expected)

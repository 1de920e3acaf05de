"""The table of supported architectures, and every shape of heads: the same promises for each."""

import pytest
import torch

import geosparse as gs

from ..tiny import EXTRA, MORE, tiny_model, tokens

KINDS = sorted(EXTRA | MORE)
# (query heads, KV heads): MHA, groups of 3, 4 and 8, MQA.
HEADS = [(4, 4), (6, 2), (8, 2), (8, 1), (16, 2)]


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


def tolerance(dense):
    # fp32 rounding through two layers of random weights; a wrong token moves logits by 1e-2 and more.
    return 2e-5 * max(1.0, dense.abs().max().item())


def check_promises(model):
    ids = tokens(4, 41)
    dense = logits(model, ids)
    for budget, tail in ((41, "centroid"), (10**6, "renormalize")):
        with gs.sparsified(model, gs.Plan.uniform(model, budget, tail)):
            assert (logits(model, ids) - dense).abs().max() <= tolerance(dense)
    plan = gs.Plan.uniform(model, 5, "centroid")
    with gs.sparsified(model, plan) as receipt:
        whole = logits(model, ids)
        assert receipt.density < 1
        assert torch.equal(receipt.kept, receipt.planned)
        assert (whole - dense).abs().max() > 100 * tolerance(dense)
        for row in range(4):
            assert (logits(model, ids[row : row + 1]) - whole[row : row + 1]).abs().max() <= tolerance(dense)
        check_cache(model, ids, whole, tolerance(dense))
        check_padding(model, ids, whole, tolerance(dense))
    assert torch.equal(logits(model, ids), dense)


def check_cache(model, ids, whole, allowed):
    with torch.no_grad():
        step = model(ids[:, :30], use_cache=True)
        pieces = [step.logits]
        for position in range(30, 41):
            step = model(ids[:, position : position + 1], past_key_values=step.past_key_values, use_cache=True)
            pieces.append(step.logits)
    assert (torch.cat(pieces, dim=1) - whole).abs().max() <= allowed


def check_padding(model, ids, whole, allowed):
    padded = torch.cat([torch.zeros(4, 6, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(4, 6, dtype=torch.long), torch.ones_like(ids)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    batch = logits(model, padded, attention_mask=mask, position_ids=positions)
    assert (batch[:, 6:] - whole).abs().max() <= allowed


@pytest.mark.parametrize("kind", KINDS)
def test_architecture(kind):
    check_promises(tiny_model(kind))


@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_head_groups(heads, kv_heads):
    check_promises(tiny_model("llama", num_attention_heads=heads, num_key_value_heads=kv_heads))


@pytest.mark.parametrize("dim", [64, 96, 128, 256])
def test_head_dimensions(dim):
    check_promises(tiny_model("qwen3", head_dim=dim, num_attention_heads=3, num_key_value_heads=1))


@pytest.mark.parametrize("kind", KINDS)
def test_generation(kind):
    model, draft = tiny_model(kind), tiny_model("llama", seed=5)
    ids = tokens(1, 33)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "do_sample": False}
    with gs.sparsified(model, gs.Plan.uniform(model, 4, "centroid")):
        greedy = model.generate(ids, **arguments)
        beams = model.generate(ids, num_beams=3, **arguments)
        assisted = model.generate(ids, assistant_model=draft, **arguments)
    assert greedy.shape[1] > 33
    assert beams.shape[1] > 33
    assert torch.equal(greedy, assisted)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_runs_and_full_budget_stays_within_its_rounding(kind):
    exact = tiny_model(kind)
    model = tiny_model(kind).to(torch.bfloat16)
    ids = tokens(2, 41)
    truth, dense = logits(exact, ids), logits(model, ids).float()
    with gs.sparsified(model, gs.Plan.uniform(model, 41, "centroid")):
        ours = logits(model, ids).float()
    # Twice the dense model's own error, and a bf16 step of the largest logit where that error happens to be small.
    assert (ours - truth).abs().max() <= 2 * (dense - truth).abs().max() + 2**-7 * truth.abs().max()

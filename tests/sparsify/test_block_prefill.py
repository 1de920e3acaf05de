"""Prefill in blocks: dense where all blocks are chosen, otherwise within the blocks that hold the largest logits."""

import pytest
import torch

import geosparse as gs
from geosparse.ops import AttentionCall, HeadRules, Span, Terms, reference_attention
from geosparse.sparsify.block_prefill import BLOCK, attend_blocks

from ..ops.test_attention import tensors, tolerance
from ..tiny import tiny_model, tokens


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(150, 150), (70, 200), (5, 40)])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_with_every_block_it_is_dense(heads, kv_heads, queries, keys, softcap):
    q, k, v = tensors(3, heads, kv_heads, queries, keys, 16)
    span = Span((0, 7, 33))
    result = attend_blocks(AttentionCall(q, k, v, span, None, Terms(0.25, softcap)), HeadRules([keys] * heads, "drop"))
    true = reference_attention(q, k, v, [keys] * heads, tail="drop", scaling=0.25, softcap=softcap, mask=span)
    assert (result.output - true.output).abs().max() <= tolerance(v)
    assert torch.equal(result.kept, true.kept)


def test_learned_sinks_belong_to_their_heads():
    q, k, v = tensors(1, 6, 2, 90, 90, 16)
    sink = torch.linspace(-2, 2, 6)
    result = attend_blocks(AttentionCall(q, k, v, None, None, Terms(0.25, None, sink)), HeadRules([90] * 6, "drop"))
    true = reference_attention(q, k, v, [90] * 6, tail="drop", scaling=0.25, sink=sink)
    assert (result.output - true.output).abs().max() <= tolerance(v)


def test_the_block_with_the_matching_keys_is_found():
    length = 12 * BLOCK
    q, k, v = tensors(1, 2, 1, length, length, 16)
    q[:, :, -1], k[:, :, 5 * BLOCK + 3] = 4.0, 4.0
    result = attend_blocks(AttentionCall(q, k, v, None, None, Terms(1.0)), HeadRules([1, 1], "drop"))
    assert (result.output[0, :, -1] - v[0, :, 5 * BLOCK + 3]).abs().max() <= 1e-3
    assert int(result.kept[0]) < length * (length + 1) // 4


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_in_a_model_the_receipt_says_what_was_read_and_decoding_follows_the_plan(name):
    model, ids = tiny_model(name), tokens(2, 200)
    plan = gs.Plan.uniform(model, 3)
    with torch.no_grad(), gs.sparsified(model, plan, prefill="block") as receipt:
        model.generate(ids, min_new_tokens=5, max_new_tokens=5, do_sample=False)
        assert any("block, because" in note for note in receipt.notes)
        full = receipt.visible[0, 0] if name == "llama" else receipt.visible[-1, 0]
        assert int(receipt.kept[-1, 0]) < int(full)
    with torch.no_grad(), gs.sparsified(model, gs.Plan.uniform(model, 200), prefill="block"):
        sparse = model(ids, use_cache=False).logits
    dense = model(ids, use_cache=False).logits
    assert (sparse - dense).abs().max() <= 1e-4 * dense.abs().max().clamp_min(1.0)

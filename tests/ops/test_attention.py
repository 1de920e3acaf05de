"""The chunked path against the fp64 reference, on odd lengths, GQA groups, padding, windows, caps and ties."""

import shutil
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.ops import (
    MEAN_FRACTION,
    PATHS,
    TAILS,
    causal_mask,
    chunked_attention,
    cpu,
    reference_attention,
    torch_chunked,
)


def tensors(batch, heads, kv_heads, queries, keys, dim, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, queries, dim), (batch, kv_heads, keys, dim), (batch, kv_heads, keys, dim)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def tolerance(value, dtype=torch.float32):
    # Output is a convex-like combination of values: rounding of a sum of S products, plus logits rounding times |v|.
    return 64 * torch.finfo(dtype).eps * value.abs().max().item()


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (9, 3), (8, 1)])
@pytest.mark.parametrize(("queries", "keys"), [(37, 37), (1, 53), (5, 53), (300, 300)])
def test_chunked_equals_reference(tail, heads, kv_heads, queries, keys):
    q, k, v = tensors(2, heads, kv_heads, queries, keys, 16)
    n_keep = [1 + (7 * h) % 19 for h in range(heads)]
    n_keep[-1] = keys + 5
    fast = chunked_attention(q, k, v, n_keep, tail=tail, scaling=0.25)
    true = reference_attention(q, k, v, n_keep, tail=tail, scaling=0.25)
    assert (fast.output - true.output).abs().max() <= tolerance(v)
    assert torch.equal(fast.kept, true.kept)


@pytest.mark.parametrize("tail", TAILS)
def test_learned_sinks(tail):
    q, k, v = tensors(2, 6, 2, 37, 37, 8)
    sink = torch.linspace(-4, 4, 6)
    for n_keep in ([1, 2, 4, 8, 16, 32], [37] * 6):
        fast = chunked_attention(q, k, v, n_keep, tail=tail, scaling=0.5, sink=sink)
        true = reference_attention(q, k, v, n_keep, tail=tail, scaling=0.5, sink=sink)
        assert (fast.output - true.output).abs().max() <= tolerance(v)
    # An always-seen token without a value is the same as one more key whose value is zero.
    key = torch.cat([torch.zeros(2, 2, 1, 8), k], dim=2).repeat_interleave(3, 1)
    value = torch.cat([torch.zeros(2, 2, 1, 8), v], dim=2).repeat_interleave(3, 1)
    logits = (q @ key.transpose(-1, -2)) * 0.5
    logits[..., 0] = sink[None, :, None]
    logits[..., 1:].masked_fill_(~causal_mask(37, 37), -torch.inf)
    assert (fast.output - logits.softmax(-1) @ value).abs().max() <= tolerance(v)


@pytest.mark.parametrize("tail", TAILS)
def test_masks_caps_bias_and_blind_rows(tail):
    q, k, v = tensors(2, 6, 2, 40, 40, 8)
    mask = causal_mask(40, 40).expand(2, 1, 40, 40).clone()
    mask[1, :, :, :11] = False  # left padding: the first 11 queries of row 1 see nothing
    mask[:, :, torch.arange(40)[:, None] - torch.arange(40)[None] >= 17] = False  # sliding window
    bias = torch.randn(1, 6, 40, 40)
    arguments = {"tail": tail, "scaling": 0.5, "mask": mask, "bias": bias, "softcap": 5.0}
    fast = chunked_attention(q, k, v, [3, 1, 8, 40, 5, 2], **arguments)
    true = reference_attention(q, k, v, [3, 1, 8, 40, 5, 2], **arguments)
    assert (fast.output - true.output).abs().max() <= tolerance(v)
    assert torch.equal(fast.kept, true.kept)
    assert fast.output[1, :, :11].abs().max() == 0


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("queries", [1, 40])
def test_each_head_may_have_its_own_tail(path, queries):
    if path == "cpu" and cpu.library() is None:
        pytest.skip(f"CPU kernels: {cpu.load_error()}")
    q, k, v = tensors(2, 6, 2, queries, 60, 16)
    tails = ["drop", "renormalize", "centroid", "centroid", "drop", "renormalize"]
    n_keep = [3, 5, 9, 60, 1, 2]
    mixed = PATHS[path](q, k, v, n_keep, tail=tails, scaling=0.25).output
    for head, tail in enumerate(tails):
        alone = reference_attention(q, k, v, n_keep, tail=tail, scaling=0.25).output[:, head]
        assert (mixed[:, head] - alone).abs().max() <= tolerance(v)


@pytest.mark.parametrize("path", sorted(PATHS))
@pytest.mark.parametrize("queries", [1, 40])
def test_a_blend_lies_between_its_ends(path, queries):
    if path == "cpu" and cpu.library() is None:
        pytest.skip(f"CPU kernels: {cpu.load_error()}")
    q, k, v = tensors(2, 6, 2, queries, 60, 16)
    n_keep = [3, 5, 9, 60, 1, 2]
    tails = ("renormalize", *MEAN_FRACTION)
    found = {tail: PATHS[path](q, k, v, n_keep, tail=tail, scaling=0.25).output.double() for tail in tails}
    for tail, share in MEAN_FRACTION.items():
        between = (1 - share) * found["even"] + share * found["centroid"]
        assert (found[tail] - between).abs().max() <= tolerance(v)
    # One kept token takes all that is missing, as a softmax over it alone does.
    assert (found["even"][:, 4] - found["renormalize"][:, 4]).abs().max() <= tolerance(v)
    assert (found["even"] - found["centroid"]).abs().max() > 100 * tolerance(v)


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None, reason="the kernels are promised on Linux with g++ only"
)
def test_kernels_are_there_where_they_can_be_built():
    assert cpu.load_error() == ""


def test_full_budget_is_dense():
    q, k, v = tensors(2, 6, 2, 70, 70, 16)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25, enable_gqa=True)
    for tail in TAILS:
        out = chunked_attention(q, k, v, [70] * 6, tail=tail, scaling=0.25).output
        assert (out - dense).abs().max() <= tolerance(v)


def test_chunking_does_not_change_the_result(monkeypatch):
    q, k, v = tensors(1, 6, 2, 130, 130, 16)
    whole = chunked_attention(q, k, v, [4, 9, 1, 30, 2, 7], tail="centroid", scaling=0.25)
    monkeypatch.setattr(torch_chunked, "CHUNK_BYTES", 1)
    single = chunked_attention(q, k, v, [4, 9, 1, 30, 2, 7], tail="centroid", scaling=0.25)
    assert (whole.output - single.output).abs().max() <= tolerance(v)
    assert torch.equal(whole.kept, single.kept)


@given(st.integers(0, 2**31), st.permutations(range(6)))
@settings(max_examples=25)
def test_permuting_heads_permutes_the_result(seed, order):
    q, k, v = tensors(1, 6, 6, 33, 33, 8, seed=seed)
    n_keep = [1, 2, 4, 8, 16, 32]
    plain = chunked_attention(q, k, v, n_keep, tail="centroid", scaling=0.3).output
    order = list(order)
    moved = chunked_attention(
        q[:, order], k[:, order], v[:, order], [n_keep[h] for h in order], tail="centroid", scaling=0.3
    ).output
    assert (plain[:, order] - moved).abs().max() <= tolerance(v)


@pytest.mark.parametrize("path", ["torch", "cpu"])
@pytest.mark.parametrize("queries", [1, 5])
def test_kept_tokens_of_next_to_no_mass_are_renormalised(path, queries):
    if path == "cpu" and cpu.library() is None:
        pytest.skip(f"no C++ kernels: {cpu.load_error()}")
    q, k, v = tensors(1, 4, 2, queries, 80, 16)
    k[:, :, 40] = 0
    q, k = q * 6, k * 6
    k[:, :, 40] = 40 * torch.nn.functional.normalize(
        q[:, ::2, -1], dim=-1
    )  # holds all mass, and is neither first nor last
    arguments = {"tail": "renormalize", "scaling": 0.25, "selector": "sink_recent"}
    fast = PATHS[path](q, k, v, [9] * 4, **arguments).output
    true = reference_attention(q, k, v, [9] * 4, **arguments).output
    kept = reference_attention(q, k, v, [9] * 4, **arguments | {"tail": "drop"}).output
    assert kept[:, ::2, -1].abs().max() < 1e-40
    assert (fast - true).abs().max() <= 40 * tolerance(
        v
    )  # logits reach 150: their rounding is a relative one of weights

"""What a dense model reads from a SparseCache is what it would read from transformers' own."""

import copy

import pytest
import torch
from transformers import DynamicCache

import geosparse as gs
from geosparse.ops import cpu
from geosparse.sparsify.cache import dense_keys
from geosparse.sparsify.cache.dense_keys import CachedKeys, serve_dense

from ...tiny import EXTRA, MORE, tiny_model, tokens

sdpa = torch.nn.functional.scaled_dot_product_attention
needs_kernels = pytest.mark.skipif(cpu.library() is None, reason=f"no C++ kernels: {cpu.load_error()}")
# fp32: two orders of summation over 41 tokens and two layers.
TOLERANCE = 1e-5


@pytest.fixture
def served(monkeypatch):
    """How often the kernel answered."""
    calls = []
    kernel = dense_keys.decode_dense

    def counted(*args, **kwargs):
        calls.append(kernel(*args, **kwargs))
        return calls[-1]

    monkeypatch.setattr(dense_keys, "decode_dense", counted)
    return calls


def decoded(model, cache, ids, start, **kwargs):
    with torch.no_grad():
        pieces = [model(ids[:, :start], past_key_values=cache, **kwargs).logits]
        for place in range(start, ids.shape[1]):
            pieces.append(model(ids[:, place : place + 1], past_key_values=cache, **kwargs).logits)
    return torch.cat(pieces, dim=1)


@needs_kernels
@pytest.mark.parametrize("kind", sorted(EXTRA | MORE))
def test_a_dense_model_decodes_the_same_from_either_cache(kind, served):
    model, ids = tiny_model(kind), tokens(2, 41)
    theirs = decoded(model, DynamicCache(config=model.config), ids, 30)
    assert not served
    ours = decoded(model, gs.SparseCache(model.config), ids, 30)
    assert (ours - theirs).abs().max() <= TOLERANCE * max(1, theirs.abs().max())
    plain = model.config._attn_implementation == "sdpa" and kind not in ("mistral", "starcoder2")
    assert bool(served) == plain  # eager attention is left alone, and layers that slide keep transformers' own


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (8, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_single_queries_equal_torch(heads, kv_heads, dtype):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, 1, 24, generator=generator).to(dtype)
    key, value = (torch.randn(2, kv_heads, 77, 24, generator=generator).to(dtype) for _ in range(2))
    with torch.no_grad():
        true = sdpa(query.double(), key.double(), value.double(), scale=0.3, enable_gqa=heads != kv_heads)
        ours = sdpa(query, serve_dense(key), value, scale=0.3, enable_gqa=heads != kv_heads)
        theirs = sdpa(query, key, value, scale=0.3, enable_gqa=heads != kv_heads)
    assert type(ours) is torch.Tensor
    assert (ours - true).abs().max() <= 2 * (theirs - true).abs().max() + torch.finfo(dtype).eps


def test_other_calls_are_torchs_own(served):
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 4, 9, 8)
    with torch.no_grad():
        keys = serve_dense(key)
        assert isinstance(keys, CachedKeys)
        single, mask = query[:, :, :1], torch.rand(1, 4, 1, 9) > 0.5
        mask[..., 0] = True
        assert torch.equal(sdpa(query, keys, key), sdpa(query, key, key))
        assert torch.equal(sdpa(single, keys, key, mask), sdpa(single, key, key, mask))
        assert torch.equal(sdpa(single, keys, key, is_causal=True), sdpa(single, key, key, is_causal=True))
        with pytest.raises(RuntimeError):
            sdpa(single, keys[:, :2], key[:, :2])
    assert set(served) <= {None}
    for plain in (keys.clone(), keys + 1, keys[:, :2], keys.transpose(1, 2), query @ keys.transpose(-1, -2)):
        assert type(plain) is torch.Tensor
    assert type(serve_dense(key)) is torch.Tensor  # autograd is on


@needs_kernels
@pytest.mark.parametrize(("heads", "queries"), [(4, 1), (2, 3)])
def test_queries_that_see_the_same_keys_under_a_mask(heads, queries, served):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, heads, queries, 24, generator=generator)
    key, value = (torch.randn(2, heads, 41, 24, generator=generator) for _ in range(2))
    mask = (torch.arange(41) >= torch.tensor([0, 13])[:, None])[:, None, None]
    with torch.no_grad():
        ours, theirs = sdpa(query, serve_dense(key), value, mask), sdpa(query, key, value, mask)
    assert len(served) == 1
    assert (ours - theirs).abs().max() <= TOLERANCE


@needs_kernels
def test_padding_generation_and_copies(served):
    model, ids = tiny_model("llama"), tokens(2, 24)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    for arguments in ({"attention_mask": mask}, {"attention_mask": mask, "num_beams": 3}):
        rules = {"max_new_tokens": 6, "do_sample": False} | arguments
        ours = model.generate(ids, past_key_values=gs.SparseCache(model.config), **rules)
        assert torch.equal(ours, model.generate(ids, **rules))
    cache = gs.SparseCache(model.config)
    whole = decoded(model, cache, ids, 20)
    assert served
    twin = copy.deepcopy(cache)
    cache.crop(-4)
    assert twin.get_seq_length() == 24
    assert (decoded(model, cache, ids[:, 20:], 2) - whole[:, 20:]).abs().max() <= TOLERANCE


@needs_kernels
def test_a_sparsified_model_goes_on_sparse_from_it(served):
    model, ids = tiny_model("llama"), tokens(1, 60)
    cache = gs.SparseCache(model.config)
    decoded(model, cache, ids[:, :50], 40)
    before = len(served)
    with gs.sparsified(model, gs.Plan.uniform(model, 3, "centroid", selector="lowbit")) as receipt:
        ours = decoded(model, cache, ids[:, 50:], 1)
    assert len(served) == before
    assert torch.equal(receipt.kept, torch.full((2, 6), 30))
    with (
        gs.sparsified(model, gs.Plan.uniform(model, 3, "centroid", selector="lowbit"), prefill="dense"),
        torch.no_grad(),
    ):
        fresh = DynamicCache(config=model.config)
        model(ids[:, :50], past_key_values=fresh)
        theirs = decoded(model, fresh, ids[:, 50:], 1)
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()

"""Gradients of every path against the fp64 reference, whose own are held against finite differences and plain code."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import geosparse as gs
from geosparse.ops import (
    PATHS,
    SELECTORS,
    TAILS,
    AttentionCall,
    HeadRules,
    Span,
    Terms,
    causal_mask,
    cpu,
    reference_attention,
    torch_chunked,
)
from geosparse.ops.hot_pages import HotPages, remember_pages
from geosparse.ops.key_index import IndexSlot, KeyIndex, remember_index
from geosparse.ops.offloaded import attend_offloaded
from geosparse.ops.selectors import choose

TOLERANCE = 1e-4
HEADS, KV_HEADS, KEYS = 6, 2, 41
N_KEEP = (3, 1, 8, 41, 5, 2)


def inputs(queries=KEYS, keys=KEYS, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, HEADS, queries, 8), (batch, KV_HEADS, keys, 8), (batch, KV_HEADS, keys, 8)]
    return [1.5 * torch.randn(shape, generator=generator) for shape in shapes]


def gradients(path, tensors, dtype=torch.float32, checkpointed=False, names=("query", "key", "value"), **rules):
    leaves = {name: part.to(dtype).requires_grad_() for name, part in zip(names, tensors, strict=True)}
    budgets = rules.pop("n_keep", N_KEEP)

    def call(*parts):
        given = dict(zip(names, parts, strict=True))
        return PATHS[path](given.pop("query"), given.pop("key"), given.pop("value"), budgets, **given, **rules).output

    call_ = (lambda *parts: checkpoint(call, *parts, use_reentrant=False)) if checkpointed else call
    output = call_(*leaves.values())
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(output.dtype)
    return torch.autograd.grad(output, list(leaves.values()), slope)


def worst(found, true):
    return max(float((a.double() - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(found, true, strict=True))


@pytest.mark.parametrize("path", [name for name in sorted(PATHS) if name != "reference"])
@pytest.mark.parametrize("selector", SELECTORS)
@pytest.mark.parametrize("tail", TAILS)
def test_every_tail_and_selector(path, tail, selector):
    if path == "cpu" and cpu.library() is None:
        pytest.skip(f"CPU kernels: {cpu.load_error()}")
    rules = {"tail": tail, "selector": selector, "scaling": 0.4}
    for queries in (1, KEYS):
        parts = inputs(queries)
        true = gradients("reference", parts, torch.float64, **rules)
        for checkpointed in (False, True):
            assert worst(gradients(path, parts, checkpointed=checkpointed, **rules), true) <= TOLERANCE


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    "case", ["padding", "window", "holes", "softcap", "sink", "bias", "share_kv", "growth", "mixed"]
)
def test_everything_else_that_a_call_may_say(tail, case):
    parts, names = inputs(), ["query", "key", "value"]
    rules = {"tail": tail, "scaling": 0.4}
    if case == "padding":
        rules |= {"mask": Span((0, 11)), "selector": "lowbit"}  # 11 queries see nothing
    elif case == "window":
        rules |= {"mask": Span((0, 3), 9)}
    elif case == "holes":
        mask = causal_mask(KEYS, KEYS).expand(2, 1, KEYS, KEYS).clone()
        mask[0, :, :, 7:15] = mask[1, :, :14] = False
        rules |= {"mask": mask}
    elif case == "softcap":
        rules |= {"softcap": 3.0, "selector": "paged+lowbit"}
    elif case == "sink":
        rules |= {"mask": Span((0, 11))}
        parts.append(torch.linspace(-2, 2, HEADS))
        names.append("sink")
    elif case == "bias":
        parts.append(torch.randn(1, HEADS, KEYS, KEYS, generator=torch.Generator().manual_seed(3)))
        names.append("bias")
    elif case == "share_kv":
        rules |= {"share_kv": True}
    elif case == "growth":
        rules |= {"n_keep": (torch.arange(KEYS) // 4 + 1).expand(1, HEADS, KEYS)}
    else:
        rules |= {"selector": ["topn", "lowbit", "paged", "paged+lowbit", "topn", "lowbit"]}
    true = gradients("reference", parts, torch.float64, names=names, **rules)
    found = gradients("torch", parts, names=names, **rules)
    assert all(torch.isfinite(part).all() for part in (*found, *true))
    assert worst(found, true) <= TOLERANCE


@pytest.mark.parametrize("selector", ["topn", "lowbit", "paged"])
def test_chunks_of_a_long_prompt_are_computed_again(selector, monkeypatch):
    monkeypatch.setattr(torch_chunked, "CHUNK_BYTES", 4 * 2 * HEADS * KEYS * 7)  # seven queries
    rules = {"tail": "blend25", "selector": selector, "scaling": 0.4}
    true = gradients("reference", inputs(), torch.float64, **rules)
    assert worst(gradients("torch", inputs(), **rules), true) <= TOLERANCE


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("selector", ["topn", "lowbit"])
def test_the_references_own_gradients_are_those_of_finite_differences(tail, selector, monkeypatch):
    """With the selection, and the index, of the undisturbed tensors."""
    parts = [part[:1, :, :18].double().requires_grad_() for part in inputs(18, 18)]
    sink = torch.linspace(-1, 1, HEADS, dtype=torch.float64).requires_grad_()
    index = KeyIndex((0,)).extend(parts[1])
    monkeypatch.setattr("geosparse.ops.reference.index_of", lambda *_: index)
    kept = []

    def fixed(sight, *rest):
        choice = choose(sight, *rest)
        kept.append(choice.keep.detach())
        return choice._replace(keep=kept[0])

    monkeypatch.setattr("geosparse.ops.reference.choose", fixed)

    def call(query, key, value, sink):
        rules = {"tail": tail, "selector": selector, "scaling": 0.3, "softcap": 4.0, "sink": sink}
        return reference_attention(query, key, value, (3, 1, 8, 18, 5, 2), **rules).output

    assert torch.autograd.gradcheck(call, (*parts, sink), fast_mode=True)


def test_the_reference_against_plain_code():
    """One head that keeps three tokens, the rest replaced by half and half."""
    query, key, value = (torch.randn(7, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    rows = []
    for place in range(7):
        seen = slice(place + 1)
        logits = key[seen] @ query[place]
        alpha = (logits - logits.max()).exp() / (logits - logits.max()).exp().sum()
        best = sorted(range(place + 1), key=lambda token: -float(logits[token].detach()))[:3]
        missing = 1 - sum(alpha[token] for token in best)
        kept = sum(alpha[token] * value[token] for token in best)
        rows.append(kept + missing * (value[seen].mean(0) + value[best].mean(0)) / 2)
    plain = torch.stack(rows)
    ours = reference_attention(*(part[None, None] for part in (query, key, value)), (3,), tail="blend50", scaling=1.0)
    assert (ours.output[0, 0] - plain).abs().max() <= 1e-12
    slope = torch.randn_like(plain)
    true = torch.autograd.grad(plain, (query, key, value), slope)
    assert worst(torch.autograd.grad(ours.output[0, 0], (query, key, value), slope), true) <= 1e-12


def test_an_index_that_has_grown_since_changes_no_gradient():
    query, key, value = inputs()
    slot = IndexSlot()
    rules = {"tail": "centroid", "selector": "paged", "scaling": 0.4}
    true = gradients("reference", (query, key, value), torch.float64, **rules)
    leaves = [part.requires_grad_() for part in (query, key, value)]
    remember_index(leaves[1], slot)
    output = PATHS["torch"](*leaves, N_KEEP, **rules).output
    longer = torch.cat([key.detach(), 9 * torch.ones(2, KV_HEADS, 64, 8)], dim=2)
    remember_index(longer, slot)
    with torch.no_grad():
        PATHS["torch"](query[:, :, :1], longer, longer, N_KEEP, **rules)
    slope = torch.randn(output.shape, generator=torch.Generator().manual_seed(9))
    assert worst(torch.autograd.grad(output, leaves, slope), true) <= TOLERANCE


def test_the_sink_alone_may_have_a_gradient():
    query, key, value = inputs(1)
    sink = torch.zeros(HEADS, requires_grad=True)
    rules = {"tail": "centroid", "scaling": 0.4, "sink": sink}
    (true,) = torch.autograd.grad(reference_attention(query, key, value, N_KEEP, **rules).output.sum(), sink)
    for path in sorted(PATHS):
        if path == "cpu" and cpu.library() is None:
            continue
        (found,) = torch.autograd.grad(PATHS[path](query, key, value, N_KEEP, **rules).output.sum(), sink)
        assert (found - true).norm() <= TOLERANCE * true.norm()


def test_offloaded_pages_have_none_and_say_so():
    query, key, value = inputs(1)
    call = AttentionCall(query.requires_grad_(), key, value, None, None, Terms(1.0))
    remember_pages(key, HotPages(2))
    with pytest.raises(gs.GeosparseError, match="no gradient"):
        attend_offloaded(call, HeadRules(N_KEEP, "drop", "lowbit"))

"""Tails with shares of their own: by hand, on every path of plain PyTorch, with pages that padding moves."""

import pytest
import torch

from geosparse.ops import PATHS, Span, chunked_attention, reference_attention
from geosparse.ops.key_index import PAGE
from geosparse.ops.tails import TAIL_RULES, TailShares
from geosparse.ops.value_means import ValueMeans, means_of

SHARES = [TailShares(0.3, -0.2, 0.4, 0.7), TailShares(pages=1.0), TailShares(kept=1.0), TailShares(weighted=1.0)]


def states(batch=1, heads=4, kv_heads=2, queries=1, keys=53, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, heads, queries, dim, generator=generator),
        torch.randn(batch, kv_heads, keys, dim, generator=generator),
        torch.randn(batch, kv_heads, keys, dim, generator=generator),
    )


def by_hand(query, key, value, n_keep, shares, first=0):
    """One head and query, token by token."""
    key, value = key[first:].double(), value[first:].double()
    alpha = (query.double() @ key.T * 0.25).softmax(-1)
    kept = alpha.topk(n_keep).indices.tolist()
    mass = float(alpha[kept].sum())
    output = sum(alpha[i] * (1 + shares.weighted * (1 - mass) / mass) * value[i] for i in kept)
    output = output + sum(shares.kept * (1 - mass) / n_keep * value[i] for i in kept)
    output = output + shares.mean * (1 - mass) * value.mean(0)
    rest = [0.0 if i in kept else float(alpha[i]) for i in range(len(alpha))]
    for start in range(0, len(rest) // PAGE * PAGE, PAGE):
        output = output + shares.pages * sum(rest[start : start + PAGE]) * value[start : start + PAGE].mean(0)
    for i in range(len(rest) // PAGE * PAGE, len(rest)):
        output = output + shares.pages * rest[i] * value[i]
    return output


@pytest.mark.parametrize("first", [0, 5])
def test_reference_by_hand(first):
    query, key, value = states()
    budgets = (3, 1, 7, 2)
    mask = Span((first,))
    output = reference_attention(query, key, value, budgets, tail=SHARES, scaling=0.25, mask=mask).output
    for head, (n_keep, shares) in enumerate(zip(budgets, SHARES, strict=True)):
        expected = by_hand(query[0, head, 0], key[0, head // 2], value[0, head // 2], n_keep, shares, first)
        assert torch.allclose(output[0, head, 0], expected, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("selector", ["topn", "lowbit", "paged"])
@pytest.mark.parametrize("queries", [1, 37])
@pytest.mark.parametrize("first", [(0, 0), (3, 17)])
def test_paths_give_what_the_reference_gives(path, selector, queries, first):
    query, key, value = states(batch=2, queries=queries, keys=70)
    rules = {"tail": SHARES, "scaling": 0.25, "selector": selector, "mask": Span(first)}
    expected = reference_attention(query, key, value, (3, 1, 7, 2), **rules)
    found = PATHS[path](query, key, value, (3, 1, 7, 2), **rules)
    # Page means are kept in fp16: half a unit in the last of 11 bits, of values below 4 with weights below 1 in all.
    assert torch.allclose(found.output.double(), expected.output.double(), atol=4 * 2.0**-11 + 2e-5)
    assert found.kept.equal(expected.kept)


def test_named_tails_are_their_shares():
    query, key, value = states(queries=5)
    for rule in TAIL_RULES.items():
        by_name = chunked_attention(query, key, value, (2,) * 4, tail=rule[0], scaling=0.25).output
        by_shares = chunked_attention(query, key, value, (2,) * 4, tail=[rule[1].shares] * 4, scaling=0.25).output
        assert by_name.equal(by_shares)


def test_sinks_windows_and_masks_with_holes():
    query, key, value = states(queries=40, keys=60)
    holes = torch.rand(1, 1, 40, 60, generator=torch.Generator().manual_seed(1)) > 0.3
    holes &= Span().mask(40, 60)
    for mask in (Span(window=33), holes):
        for sink in (None, torch.tensor([0.5, -1.0, 2.0, 0.0])):
            rules = {"tail": SHARES, "scaling": 0.25, "mask": mask, "sink": sink}
            expected = reference_attention(query, key, value, (3, 1, 7, 2), **rules).output
            for path in PATHS.values():
                found = path(query, key, value, (3, 1, 7, 2), **rules).output
                assert torch.allclose(found.double(), expected.double(), atol=2e-5)


def test_gradients_of_shares():
    query, key, value = (state.requires_grad_() for state in states(queries=21, keys=40))
    rules = {"tail": SHARES, "scaling": 0.25}
    direction = torch.randn(1, 4, 21, 16, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad(
        (chunked_attention(query, key, value, (3, 1, 7, 2), **rules).output * direction).sum(), (query, key, value)
    )
    reference = reference_attention(query, key, value, (3, 1, 7, 2), **rules).output
    expected = torch.autograd.grad((reference * direction).sum(), (query, key, value))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_means_of_pages():
    _, _, value = states(batch=2, keys=70)
    held = means_of(value, (0, 9))
    assert held.pages == [4, 3]
    assert torch.allclose(held.means[1, 0, 2].float(), value[1, 0, 9 + 32 : 9 + 48].mean(0), atol=2.0**-11)
    grown = ValueMeans((0, 9)).extend(value[:, :, :40]).extend(value)
    assert grown.means[:, :, :3].equal(held.means[:, :, :3])

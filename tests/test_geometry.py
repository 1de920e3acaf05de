"""Geometry against a brute-force fp64 implementation with Python loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.geometry import random_order, rank_of, selection_order, separation, tail_errors


def brute_force(alpha, value, order, n):
    """Precision, recall, F and margin of one query, straight from the definitions."""
    chosen, rest = order[:n], order[n:]
    y = [alpha[i] * value[i] for i in range(len(alpha))]
    centre = sum(y[i] for i in chosen)
    distance = [float((y_i - centre).norm()) for y_i in y]
    outer, inner = max(distance[i] for i in chosen), min(distance[j] for j in rest)
    precision = n / (n + sum(distance[j] <= outer for j in rest))
    recall = sum(distance[i] < inner for i in chosen) / n
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return precision, recall, f1, inner - outer


@given(st.integers(2, 24), st.integers(1, 6), st.integers(0, 2**31), st.booleans())
@settings(max_examples=60, deadline=None)
def test_separation_equals_brute_force(length, dim, seed, concentrated):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, length, generator=generator, dtype=torch.float64) * (4 if concentrated else 0.5)
    seen = torch.ones(3, length, dtype=torch.bool)
    seen[2, length // 2 + 1 :] = False
    alpha = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    value = torch.randn(length, dim, generator=generator, dtype=torch.float64)
    ranking = selection_order(logits, seen)
    budgets = [n for n in (1, 2, 3, 5, 8, length - 1) if n < length]
    result = separation(alpha, value, ranking, seen, budgets)
    for query in range(3):
        visible = int(seen[query].sum())
        order = sorted(range(visible), key=lambda i: (-float(logits[query, i]), i))
        for column, n in enumerate(budgets):
            if n >= visible:
                assert all(math.isnan(metric[query, column]) for metric in result)
                continue
            expected = brute_force(alpha[query, :visible], value[:visible], order, n)
            # The margin tells how close the call was: the counts may only differ where two distances all but tie.
            for metric, number in zip(result, expected, strict=True):
                assert float(metric[query, column]) == pytest.approx(number, abs=1e-7)


def test_ties_go_to_the_smaller_index_and_invisible_tokens_last():
    score = torch.tensor([[1.0, 3.0, 3.0, 0.0, 9.0]])
    seen = torch.tensor([[True, True, True, True, False]])
    assert rank_of(selection_order(score, seen)).tolist() == [[2, 0, 1, 3, 4]]


def test_single_token_is_trivial_and_margin_sign_means_perfect_separation():
    generator = torch.Generator().manual_seed(1)
    alpha = torch.randn(4, 50, generator=generator).double().softmax(-1)
    value = torch.randn(50, 8, generator=generator).double()
    seen = torch.ones(4, 50, dtype=torch.bool)
    result = separation(alpha, value, random_order(seen, generator), seen, [1, 2, 4, 8])
    assert torch.all(result.f1[:, 0] == 1)
    assert torch.equal(result.margin > 0, result.f1 == 1)


def test_tail_errors_are_the_identities():
    generator = torch.Generator().manual_seed(2)
    alpha = (3 * torch.randn(5, 40, generator=generator)).double().softmax(-1)
    value = torch.randn(40, 8, generator=generator).double()
    seen = torch.ones(5, 40, dtype=torch.bool)
    order = selection_order(alpha, seen)
    rank = rank_of(order)
    result = tail_errors(alpha, value, order, seen, [1, 4, 16, 40])
    for column, n in enumerate([1, 4, 16]):
        kept = rank < n
        mass = (alpha * kept).sum(-1, keepdim=True)
        mu_s = (alpha * kept) @ value / mass
        mu_t = (alpha * ~kept) @ value / (1 - mass)
        missing = {"drop": mu_t, "renormalize": mu_t - mu_s, "centroid": mu_t - value.mean(0)}
        for tail, vector in missing.items():
            assert torch.allclose(result.error[tail][:, column], -(1 - mass) * vector, atol=1e-12)
        assert torch.allclose(result.mass[:, column], mass[:, 0])
    assert all(error[:, 3].abs().max() == 0 for error in result.error.values())

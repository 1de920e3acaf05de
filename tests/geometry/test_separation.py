"""Geometry against a brute-force fp64 implementation with Python loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.geometry.separation import (
    DISTANCES,
    contribution_score,
    random_order,
    rank_of,
    selection_order,
    separation,
)
from geosparse.geometry.tail_error import kept_errors


def brute_force(alpha, value, order, n, distance="euclidean"):
    """Precision, recall, F, margin and inversions of one query, straight from the definitions."""
    chosen, rest = order[:n], order[n:]
    y = [alpha[i] * value[i] for i in range(len(alpha))]
    centre = sum(y[i] for i in chosen)
    if distance == "euclidean":
        far = [float((y_i - centre).square().sum().sqrt()) for y_i in y]
    else:
        far = [1 - float(y_i @ centre) / (float(y_i.norm()) * float(centre.norm()) + 1e-12) for y_i in y]
    outer, inner = max(far[i] for i in chosen), min(far[j] for j in rest)
    precision = n / (n + sum(far[j] <= outer for j in rest))
    recall = sum(far[i] < inner for i in chosen) / n
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return precision, recall, f1, inner - outer, sum(far[j] <= far[i] for i in chosen for j in rest)


def hold_against_brute_force(alpha, value, order, seen, budgets, distances=DISTANCES):
    """Every metric at every query and budget."""
    for distance in distances:
        result = separation(alpha, value, order, seen, budgets, distance)
        for query in range(len(alpha)):
            visible = int(seen[query].sum())
            for column, n in enumerate(budgets):
                if n >= visible:
                    assert all(math.isnan(metric[query, column]) for metric in result)
                    continue
                ranked = order[query, :visible].tolist()
                expected = brute_force(alpha[query, :visible], value[:visible], ranked, n, distance)
                for metric, number in zip(result, expected, strict=True):
                    assert float(metric[query, column]) == pytest.approx(number, abs=1e-7)


def budgets_below(length):
    return sorted({n for n in (1, 2, 3, 5, 8, length - 1) if n < length})


@pytest.mark.parametrize("ranking", ["attention", "contribution", "random"])
@given(st.integers(2, 24), st.integers(1, 6), st.integers(0, 2**31), st.booleans())
@settings(max_examples=40)
def test_metrics_equal_brute_force(ranking, length, dim, seed, concentrated):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, length, generator=generator, dtype=torch.float64) * (4 if concentrated else 0.5)
    seen = torch.ones(3, length, dtype=torch.bool)
    seen[2, length // 2 + 1 :] = False
    alpha = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    value = torch.randn(length, dim, generator=generator, dtype=torch.float64)
    scores = {"attention": alpha, "contribution": contribution_score(alpha, value)}
    order = random_order(seen, generator) if ranking == "random" else selection_order(scores[ranking], seen)
    hold_against_brute_force(alpha, value, order, seen, budgets_below(length))


@given(st.integers(2, 16), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=60)
def test_metrics_equal_brute_force_where_distances_tie(length, dim, seed):
    """Small whole values and weights that are powers of two: every number is exact, and ties are many."""
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.full((2, length), 2.0**-5, dtype=torch.float64)
    alpha[1] = 2.0 ** -torch.randint(3, 6, (length,), generator=generator).double()
    value = torch.randint(-2, 3, (length, dim), generator=generator).double()
    seen = torch.ones(2, length, dtype=torch.bool)
    order = selection_order(alpha, seen)
    budgets = budgets_below(length)
    for query in range(2):
        ranked = order[query].tolist()
        result = separation(alpha, value, order, seen, budgets)
        for column, n in enumerate(budgets):
            expected = brute_force(alpha[query], value, ranked, n)
            for metric, number in zip(result, expected, strict=True):
                assert float(metric[query, column]) == pytest.approx(number, abs=1e-7)


@given(st.integers(2, 40), st.integers(1, 70), st.integers(0, 2**31))
@settings(max_examples=40)
def test_copies_of_a_token_tie(length, dim, seed):
    """Each token comes twice; where one copy is selected and the other is not, their distances are equal."""
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(length, dim, generator=generator, dtype=torch.float64)
    place = torch.randperm(2 * length, generator=generator)
    value = torch.cat([half, half])[place]
    logits = torch.randn(1, length, generator=generator, dtype=torch.float64)
    alpha = torch.cat([logits, logits], -1).softmax(-1)[:, place]
    seen = torch.ones(1, 2 * length, dtype=torch.bool)
    hold_against_brute_force(alpha, value, selection_order(alpha, seen), seen, budgets_below(2 * length))


def test_a_ranking_may_end_with_the_largest_budget():
    generator = torch.Generator().manual_seed(4)
    alpha = torch.randn(6, 50, generator=generator).double().softmax(-1)
    value = torch.randn(50, 8, generator=generator).double()
    seen = torch.ones(6, 50, dtype=torch.bool)
    order = random_order(seen, generator)
    for whole, cut in zip(
        separation(alpha, value, order, seen, [2, 8]),
        separation(alpha, value, order[:, :8], seen, [2, 8]),
        strict=True,
    ):
        assert torch.equal(whole, cut)


def test_inversions_bound_precision_and_recall():
    generator = torch.Generator().manual_seed(5)
    alpha = (2 * torch.randn(20, 60, generator=generator)).double().softmax(-1)
    value = torch.randn(60, 8, generator=generator).double()
    seen = torch.ones(20, 60, dtype=torch.bool)
    budgets = torch.tensor([1, 2, 4, 16, 59])
    for distance in DISTANCES:
        result = separation(alpha, value, selection_order(alpha, seen), seen, budgets.tolist(), distance)
        assert (result.precision >= budgets / (budgets + result.inversions) - 1e-12).all()
        assert (result.recall >= (1 - result.inversions / budgets).clamp_min(0) - 1e-12).all()
        assert torch.equal(result.inversions == 0, result.margin > 0)


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


def test_leading_dimensions_are_independent():
    """A batch of heads gives what each of its heads gives alone, through every function."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(2, 3, 5, 20, generator=generator, dtype=torch.float64)
    seen = torch.rand(2, 3, 5, 20, generator=generator) < 0.8
    seen[..., 0] = True
    scores = scores.masked_fill(~seen, -torch.inf)
    alpha = 0.9 * scores.softmax(-1)  # a tenth goes to a learned sink
    value = torch.randn(2, 3, 20, 4, generator=generator, dtype=torch.float64)
    believed = scores + 0.1 * torch.randn(2, 3, 5, 20, generator=generator, dtype=torch.float64)
    budgets = [1, 3, 8]
    order = selection_order(alpha, seen)

    def errors(*at):
        rank = rank_of(order[at])
        keeps = [(seen[at] & (rank < n), guess) for n in budgets for guess in (None, believed[at])]
        return kept_errors(alpha[at], value[at], keeps, seen[at], scores[at])

    together = errors()
    for at in ((0, 0), (1, 2)):
        torch.testing.assert_close(contribution_score(alpha, value)[at], contribution_score(alpha[at], value[at]))
        alone = errors(*at)
        torch.testing.assert_close(together.mass[at], alone.mass)
        for tail, error in alone.error.items():
            torch.testing.assert_close(together.error[tail][at], error)
        for distance in DISTANCES:
            batch = separation(alpha, value, order, seen, budgets, distance)
            single = separation(alpha[at], value[at], order[at], seen[at], budgets, distance)
            for whole, part in zip(batch, single, strict=True):
                torch.testing.assert_close(whole[at], part, equal_nan=True)

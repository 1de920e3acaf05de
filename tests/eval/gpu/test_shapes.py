"""Budgets and data that are timed."""

from eval.gpu import shapes


def test_budgets_are_spread_around_their_mean():
    drawn = shapes.budgets_of(32, 32768, 0.05)
    assert abs(float(drawn.float().mean()) - 0.05 * 32768) < 2
    assert int(drawn.max()) > 2 * int(drawn.float().median())

"""Rank correlation of metrics with damage."""

import pytest
import torch

from eval.studies.geometry import damage


def test_a_metric_that_is_the_damage_has_correlation_one():
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(12, 4, generator=generator).double()
    assert damage.over_heads(loss[:, 0], loss[:, 0])["spearman"] == pytest.approx(1.0)
    assert damage.along_n(-loss, loss)["spearman"] == pytest.approx(-1.0)
    assert damage.worst_share(torch.eye(10).double()) == [1.0] * 10
    heads = damage.sample_heads(3, 4, 5, 0)
    assert len({tuple(row) for row in heads.tolist()}) == 5
    assert heads.amax(0).tolist() <= [2, 3]

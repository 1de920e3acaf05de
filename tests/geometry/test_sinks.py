"""Sinks are found by what they do, wherever they stand."""

import pytest
import torch

from geosparse.geometry.sinks import find_sinks, lags, own_position, received_mass

from ..field import rows, values


@pytest.mark.parametrize("sinks", [(), (0,), (40,), (0, 23, 84)])
def test_sinks_are_found_at_any_position(sinks):
    generator = torch.Generator().manual_seed(1)
    alpha, seen = rows(32, 256, generator, sinks, sink_mass=0.4 if sinks else 0.0)
    value = values(256, 32, generator, sinks=sinks)
    found = find_sinks(alpha[None], value[None], seen)
    assert found[0].nonzero().flatten().tolist() == list(sinks)


def test_mass_alone_and_compression_alone_make_no_sink():
    generator = torch.Generator().manual_seed(2)
    alpha, seen = rows(32, 256, generator, sinks=(30,), sink_mass=0.4)
    long_value = values(256, 32, generator, sinks=())
    assert not find_sinks(alpha[None], long_value[None], seen).any()
    alpha, seen = rows(32, 256, generator, sinks=(), sink_mass=0.0)
    short_value = values(256, 32, generator, sinks=(30,))
    assert not find_sinks(alpha[None], short_value[None], seen).any()


def test_one_query_head_suffices_for_its_whole_group():
    generator = torch.Generator().manual_seed(3)
    (sunk, seen), (free, _) = rows(32, 256, generator, (5,), 0.5), rows(32, 256, generator, (), 0.0)
    value = torch.stack([values(256, 32, generator, sinks=(5,)), values(256, 32, generator, sinks=(5,))])
    found = find_sinks(torch.stack([sunk, free, free, free]), value, seen)
    assert found.nonzero().tolist() == [[0, 5]]


def test_lags_and_positions_follow_the_mask():
    seen = torch.tensor([[False, True, True, False], [True, True, True, True]])
    assert own_position(seen).tolist() == [2, 3]
    assert lags(seen).tolist() == [[2, 1, 0, -1], [3, 2, 1, 0]]


def test_near_queries_do_not_count_as_readers():
    alpha = torch.zeros(1, 40, 40)
    alpha[0, torch.arange(40), torch.arange(40)] = 1.0
    assert not received_mass(alpha, torch.ones(40, 40).tril().bool()).any()

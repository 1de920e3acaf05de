"""Sampled positions are stratified, and a window's random numbers are its alone."""

import torch

from geosparse.profile.sampling import evenly, sample_positions, window_generator


def test_sampled_positions_are_stratified():
    for length, count in [(8, 1), (8, 100), (40, 5), (1024, 64)]:
        positions = sample_positions(length, count, torch.Generator().manual_seed(3))
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert 0 <= positions.min() <= positions.max() <= length - 2
        assert len(positions) >= 0.8 * min(count, length - 1)


def test_the_random_numbers_of_a_window_depend_on_seed_length_and_index_alone():
    draws = [
        torch.rand(4, generator=window_generator(*arguments)).tolist()
        for arguments in [(0, 64, 1), (0, 64, 1), (1, 64, 1), (0, 32, 1), (0, 64, 2)]
    ]
    assert draws[0] == draws[1]
    assert len({tuple(draw) for draw in draws}) == 4


def test_evenly_takes_the_middle_of_each_part_and_never_more_than_there_are():
    assert evenly(2, 8) == [2, 6]
    assert evenly(9, 3) == [0, 1, 2]

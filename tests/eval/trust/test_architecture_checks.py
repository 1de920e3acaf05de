"""The measure that model types are held to."""

import math

import torch

from eval.trust.architecture_checks import _relative, in_words


def test_a_difference_is_relative_to_the_largest_number():
    expected = torch.tensor([1.0, -4.0, torch.inf])
    assert _relative(torch.tensor([1.5, -4.0, torch.inf]), expected) == 0.125


def test_other_shapes_and_other_infinities_are_no_match():
    expected = torch.tensor([1.0, torch.inf])
    assert _relative(torch.tensor([1.0]), expected) == math.inf
    assert _relative(torch.tensor([1.0, 2.0]), expected) == math.inf


def test_an_exception_is_one_line():
    assert in_words(ValueError("first\nsecond")) == "ValueError: first"
    assert in_words(KeyError()) == "KeyError: "

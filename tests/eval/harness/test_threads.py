import pytest
import torch

from eval.harness.threads import torch_threads


def failing(threads: int) -> None:
    with torch_threads(threads):
        raise ValueError(f"{torch.get_num_threads()} threads")


def test_the_number_of_threads_goes_back_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(ValueError, match=f"{before + 1} threads"):
        failing(before + 1)
    assert torch.get_num_threads() == before

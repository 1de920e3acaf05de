"""The oracle keeps what it says."""

import pytest
import torch

from eval.studies.planner.top_p import matched_mass, top_p_nll
from geosparse.measure.loss import token_nll
from tests.tiny import tiny_model, tokens


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_all_the_mass_is_dense_and_less_keeps_less(kind):
    model, windows = tiny_model(kind), tokens(2, 40)
    nll, kept = top_p_nll(model, windows, 2.0, "all")
    assert torch.allclose(nll, token_nll(model, windows), atol=1e-4)
    counts = [top_p_nll(model, windows, mass, "some")[1] for mass in (0.3, 0.6, 0.9)]
    assert 1 <= counts[0] < counts[1] < counts[2] < kept
    mass = matched_mass(model, windows, 6.0)
    assert top_p_nll(model, windows, mass, "matched")[1] <= 6.0

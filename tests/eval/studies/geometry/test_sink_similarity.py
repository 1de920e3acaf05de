"""Similarity of sinks against its definition."""

import pytest
import torch

from eval.studies.geometry import sink_similarity


def test_sink_similarity_is_the_cosine_with_what_is_selected():
    generator = torch.Generator().manual_seed(0)
    alpha = torch.full((1, 12, 100), 0.0)
    positions = torch.arange(88, 100)
    for row, position in enumerate(positions):
        alpha[0, row, 0], alpha[0, row, position - 20], alpha[0, row, position] = 0.5, 0.3, 0.2
    seen = torch.arange(100) <= positions[:, None]
    value = torch.randn(1, 100, 8, generator=generator)
    value[0, 0] *= 0.1 / value[0, 0].norm()
    found = sink_similarity.observe(alpha, value, seen, (3,))
    for row, position in enumerate(positions):
        kept = 0.3 * value[0, position - 20] + 0.2 * value[0, position]
        expected = torch.cosine_similarity(kept, value[0, 0], dim=0)
        assert float(found.similarity[0, row, 0]) == pytest.approx(float(expected), abs=1e-5)

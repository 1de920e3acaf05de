"""Signatures by their definitions, and the rule at its thresholds."""

import math

import pytest
import torch

from geosparse import GeosparseError
from geosparse.geometry.regimes import (
    CONFIDENT,
    FOCUS,
    MASS_SCALE,
    REGIMES,
    RESET_MASS,
    SIGNATURES,
    classify,
    shares_by_layer,
    signatures,
    typical,
)

from ..field import rows, values


def measured(alpha, value, seen):
    found = signatures(alpha[None], value[None], seen, torch.Generator().manual_seed(0))[0]
    return dict(zip(SIGNATURES, found.tolist(), strict=True))


def head(sink_mass, log_free_set):
    """Typical signatures that decide, the others left at zero."""
    found = torch.zeros(len(SIGNATURES), dtype=torch.float64)
    found[SIGNATURES.index("sink_mass")] = sink_mass
    found[SIGNATURES.index("log_free_set")] = log_free_set
    return found


def test_signatures_follow_their_definitions():
    generator = torch.Generator().manual_seed(0)
    alpha, seen = rows(16, 200, generator, (3,), sink_mass=0.4)
    value = values(200, 16, generator, sinks=(3,))
    found = measured(alpha, value, seen)
    free = alpha.clone()
    free[:, 3] = 0
    share = free / free.sum(-1, keepdim=True)
    output = alpha @ value
    position = seen.sum(-1) - 1
    norm = value.norm(dim=-1)
    entropy = [-(row[row > 0] * row[row > 0].log()).sum() for row in share]
    assert found["sink_mass"] == pytest.approx(0.4)
    assert found["log_free_set"] == pytest.approx(float(torch.stack(entropy).mean()))
    ratio = output.norm(dim=-1) / norm[torch.arange(200) != 3].mean()
    assert found["output_ratio"] == pytest.approx(float(ratio.mean()))
    own = torch.nn.functional.cosine_similarity(output, value[position], dim=-1)
    assert found["own_similarity"] == pytest.approx(float(own.mean()))
    local = sum(float(alpha[q, max(0, p - 15) : p + 1].sum()) for q, p in enumerate(position.tolist())) / 16
    assert found["local_mass"] == pytest.approx(local)
    unit = value / norm[:, None]
    others = torch.arange(200) != 3
    assert found["sink_similarity"] == pytest.approx(float((unit[others] @ unit[3]).mean()))


def test_a_head_that_looks_at_itself_alone():
    alpha = torch.eye(40)[8:]
    found = measured(
        alpha, torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), torch.ones(40, 40).tril()[8:].bool()
    )
    assert found["own_similarity"] == pytest.approx(1.0)
    assert found["log_set"] == pytest.approx(0.0, abs=1e-6)
    assert found["local_mass"] == pytest.approx(1.0)
    assert math.isnan(found["sink_similarity"])


@pytest.mark.parametrize(
    ("sink_mass", "log_free_set", "regime"),
    [
        (0.9, 1.0, "reset"),
        (0.9, 6.0, "reset"),
        (0.1, 1.0, "retriever"),
        (0.1, 6.0, "mixer"),
        (RESET_MASS, 6.0, "unclear"),
        (0.1, FOCUS, "unclear"),
    ],
)
def test_the_rule_at_and_away_from_its_thresholds(sink_mass, log_free_set, regime):
    result = classify(head(sink_mass, log_free_set))
    assert REGIMES[int(result.label)] == regime
    assert float(result.probability.sum()) == pytest.approx(1.0)
    assert (float(result.confidence) < CONFIDENT) == (regime == "unclear")


def test_confidence_is_the_normal_probability_of_staying_on_this_side():
    result = classify(head(RESET_MASS + MASS_SCALE, 6.0))
    assert float(result.confidence) == pytest.approx(0.8413, abs=1e-4)


def test_one_odd_window_moves_no_head():
    usual = torch.stack([head(0.1, 1.0 + 0.01 * w) for w in range(5)])
    odd = usual.clone()
    odd[2] = head(1.0, 7.0)
    assert int(classify(typical(odd)).label) == int(classify(typical(usual)).label)


def test_permuting_heads_permutes_labels():
    found = torch.stack([head(0.9, 1.0), head(0.1, 1.0), head(0.1, 5.0)])
    order = torch.tensor([2, 0, 1])
    assert torch.equal(classify(found[order]).label, classify(found).label[order])


def test_signatures_that_are_not_finite_are_refused():
    with pytest.raises(GeosparseError, match="finite"):
        classify(head(math.nan, 1.0))


def test_shares_sum_to_one_in_every_layer():
    label = torch.tensor([[0, 0, 1, 3], [2, 2, 2, 2]])
    assert shares_by_layer(label).tolist() == [[0.5, 0.25, 0.0, 0.25], [0.0, 0.0, 1.0, 0.0]]

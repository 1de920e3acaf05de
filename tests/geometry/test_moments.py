"""Moments against loops, and that they merge exactly."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse import GeosparseError
from geosparse.geometry.moments import LOG_FLOOR, Moments, lag_bins, lag_similarity, total, window_moments
from geosparse.geometry.sinks import find_sinks

from ..field import rows, values


def window(seed, length=128, dim=8, heads=2):
    generator = torch.Generator().manual_seed(seed)
    alpha, seen = zip(*(rows(12, length, generator, (0, 9)) for _ in range(heads)), strict=True)
    return torch.stack(alpha), values(length, dim, generator, sinks=(0, 9))[None], seen[0]


@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 2**31))
@settings(max_examples=30)
def test_similarity_by_lag_equals_the_double_loop(length, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(2, length, dim, generator=generator)
    counted = torch.rand(2, length, generator=generator) > 0.3
    sums, pairs = lag_similarity(value, counted)
    cosine = torch.nn.functional.cosine_similarity(value[:, :, None].double(), value[:, None].double(), dim=-1)
    for head in range(2):
        for lag in range(length):
            both = [i for i in range(length - lag) if counted[head, i] and counted[head, i + lag]]
            assert pairs[head, lag] == len(both)
            assert float(sums[head, lag]) == pytest.approx(sum(float(cosine[head, i, i + lag]) for i in both), abs=1e-9)


def test_the_sums_are_those_of_the_definitions():
    alpha, value, seen = window(0)
    moments = window_moments(alpha, value, seen)
    sinks = find_sinks(alpha, value, seen)[0]
    assert sinks.nonzero().flatten().tolist() == [0, 9]
    norm = value[0].norm(dim=-1)
    kept = norm[~sinks]
    expected = [len(kept), kept.sum(), kept.square().sum(), (kept - kept.mean()).abs().sum()]
    assert torch.allclose(moments.norm[1], torch.tensor(expected, dtype=torch.float64))
    unit = value[0] / norm[:, None]
    cosine = unit @ unit.T
    square = cosine[~sinks][:, ~sinks].square()
    assert torch.allclose(moments.square[0], torch.stack([torch.tensor(126.0 * 125), square.sum() - 126]).double())
    sink = cosine[sinks][:, ~sinks]
    assert torch.allclose(moments.sink_cosine[0], torch.stack([torch.tensor(252.0), sink.sum()]).double())
    assert torch.allclose(moments.sink_mass[0, 1], alpha[0][:, sinks].sum())
    edges = lag_bins(128, 0).tolist()
    for place in (0, 3, len(edges) - 2):
        lags = range(edges[place], edges[place + 1])
        reached = [(q, int(own) - lag) for q, own in enumerate(seen.sum(-1) - 1) for lag in lags]
        pairs = [(q, i) for q, i in reached if i >= 0 and not sinks[i]]
        logs = [max(float((alpha[1, q, i] * seen[q].sum()).log()), LOG_FLOOR) for q, i in pairs]
        found = moments.attention[1, :, place]
        expected = [sum(float(alpha[1, q, i]) for q, i in pairs), sum(logs), sum(log * log for log in logs)]
        assert found.tolist() == pytest.approx(expected)
        assert moments.readers[1, place] == len(pairs)


def test_windows_merge_exactly_in_any_order():
    parts = [window_moments(*window(seed)) for seed in range(3)]
    merged, swapped = total(parts), parts[2] + (parts[0] + parts[1])
    for item in dataclasses.fields(Moments):
        sums = torch.stack([getattr(part, item.name) for part in parts]).sum(0)
        assert torch.allclose(getattr(merged, item.name), sums, rtol=1e-14)
        assert torch.allclose(getattr(swapped, item.name), sums, rtol=1e-14)


def test_other_lengths_do_not_add_up():
    with pytest.raises(GeosparseError, match="same heads and length"):
        window_moments(*window(0)) + window_moments(*window(0, length=96))


def test_a_sliding_window_is_no_evidence_about_older_tokens():
    alpha, value, seen = window(0)
    from geosparse.geometry.sinks import lags

    seen = seen & (lags(seen) < 16)
    alpha = alpha * seen
    moments = window_moments(alpha / alpha.sum(-1, keepdim=True), value, seen)
    near = int((lag_bins(128, 0)[1:] <= 16).sum())
    assert moments.readers[:, :near].min() > 0
    # One bin may hold lags on both sides of the window's end.
    assert not moments.readers[:, near + 1 :].any()

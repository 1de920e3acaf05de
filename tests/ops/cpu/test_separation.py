"""The kernel that counts for the geometry, against the same counts in torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.geometry import separation
from geosparse.geometry.separation import DISTANCES, compare, separations
from geosparse.ops.cpu import ISAS, library
from geosparse.ops.cpu.separation import separates

pytestmark = pytest.mark.skipif(library() is None, reason="the C++ kernels are not built")


@pytest.fixture(params=ISAS)
def instruction_set(request):
    loaded = library()
    if loaded.gs_set_isa(ISAS.index(request.param)) != ISAS.index(request.param):
        pytest.skip(f"this processor has no {request.param}")
    yield
    loaded.gs_set_isa(-1)


def inputs(length, budget, seed, copies):
    """Rows whose numbers are multiples of 1/8, so that torch and the kernel round alike, with ties where `copies`."""
    generator = torch.Generator().manual_seed(seed)
    scale = 2 if copies else 64
    size, along = (torch.randint(1, scale, (2, 3, length), generator=generator).float() / 8 for _ in range(2))
    seen = torch.rand(2, 3, length, generator=generator) > 0.2
    seen[..., :budget] = True
    picked = torch.rand(2, 3, length, generator=generator).masked_fill(~seen, -1.0).topk(budget).indices
    return size.square().masked_fill(~seen, torch.inf), along, size, torch.full((2, 3, 1), 0.5), picked


@given(st.integers(2, 80), st.data(), st.integers(0, 2**31), st.booleans(), st.sampled_from(DISTANCES))
@settings(max_examples=60)
def test_the_counts_are_those_of_torch(length, data, seed, copies, distance):
    square, along, size, norm, picked = inputs(length, data.draw(st.integers(1, length - 1)), seed, copies)
    assert separates(square)
    fast = compare(square, along, size, norm, picked, distance)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(separation, "separates", lambda square: False)
        slow = compare(square, along, size, norm, picked, distance)
    rest = torch.isfinite(square).sum(-1) > picked.shape[-1]
    for name in ("most", "clear", "inversions"):
        assert torch.equal(getattr(fast, name)[rest], getattr(slow, name)[rest]), name
    near = square - 2 * along if distance == "euclidean" else -along / (size * norm)
    for token, other in ((fast.outer, slow.outer), (fast.inner, slow.inner)):
        at = [near.gather(-1, place.unsqueeze(-1)).squeeze(-1)[rest] for place in (token, other)]
        assert torch.equal(*at)


@pytest.mark.usefixtures("instruction_set")
def test_every_instruction_set_gives_the_metrics_of_torch(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    seen = torch.ones(4, 200, dtype=torch.bool).tril(196)
    alpha = torch.randn(4, 200, generator=generator).masked_fill(~seen, -torch.inf).softmax(-1)
    value = torch.randn(200, 8, generator=generator)
    order = alpha.argsort(dim=-1, descending=True)
    fast = separations(alpha, value, order, seen, [1, 2, 7, 64, 199])
    monkeypatch.setattr(separation, "separates", lambda square: False)
    slow = separations(alpha, value, order, seen, [1, 2, 7, 64, 199])
    for distance in DISTANCES:
        for ours, theirs in zip(fast[distance], slow[distance], strict=True):
            assert torch.equal(ours.nan_to_num(-1.0), theirs.nan_to_num(-1.0))


def test_numbers_that_are_not_finite_do_no_harm():
    square, along, size, norm, picked = inputs(40, 5, 0, False)
    for poison in (torch.nan, torch.inf):
        broken = along.clone()
        broken[0, 0] = poison
        found = compare(square, broken, size, norm, picked, "euclidean")
        clean = compare(square, along, size, norm, picked, "euclidean")
        assert all(torch.equal(part[1:], other[1:]) for part, other in zip(found, clean, strict=True))
        assert all(int(part.min()) >= 0 for part in found)
        assert int(found.inner.max()) < 40

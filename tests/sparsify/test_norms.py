"""Norms that take few rows to the kernel: which ones, when, and put back exactly."""

import copy
import pickle

import pytest
import torch

import geosparse as gs
from geosparse.ops.cpu.fast_call import direct
from geosparse.sparsify import norms
from geosparse.sparsify.norms import TERMS, install_norms, remove_norms

from ..tiny import EXTRA, tiny_model, tokens

pytestmark = pytest.mark.skipif(direct() is None, reason="the C++ kernels do not serve norms here")


@pytest.fixture
def calls(monkeypatch):
    """How many norms the kernel served."""
    found = []

    def noted(*args):
        result = rms_norm(*args)
        if result is not None:
            found.append(tuple(args[0].shape))
        return result

    rms_norm = norms.rms_norm
    monkeypatch.setattr(norms, "rms_norm", noted)
    return found


class Llama(torch.nn.Module):
    """As most models have it."""

    def __init__(self, width, dtype=torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(width, dtype=dtype))
        self.variance_epsilon = 1e-5

    def forward(self, rows):
        wide = rows.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * wide.to(rows.dtype)


class Gemma(Llama):
    def forward(self, rows):
        wide = rows.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return (wide * (1 + self.weight.float())).to(rows.dtype)


class Centred(Llama):
    def forward(self, rows):
        return super().forward(rows - rows.mean(-1, keepdim=True))


class Elsewhere(Llama):
    """Adds another epsilon than it says."""

    def forward(self, rows):
        said, self.variance_epsilon = self.variance_epsilon, 1e-4
        try:
            return super().forward(rows)
        finally:
            self.variance_epsilon = said


class Gated(Llama):
    def forward(self, rows, gate):
        return super().forward(rows) * gate


class Biased(Llama):
    def __init__(self, width):
        super().__init__(width)
        self.register_buffer("bias", torch.ones(width))

    def forward(self, rows):
        return super().forward(rows) + self.bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_are_recognised_by_what_they_compute(dtype):
    model = torch.nn.Sequential(Llama(40, dtype), Gemma(40, dtype), torch.nn.RMSNorm(40, eps=1e-5, dtype=dtype))
    torch.nn.init.normal_(model[2].weight)
    kinds = [module.__dict__[TERMS] for module in install_norms(model)]
    assert [kind for _, kind in kinds[:2]] == ["twice", "shifted"]
    assert kinds[2][1] in ("once", "twice")
    assert all(eps == 1e-5 for eps, _ in kinds)


def test_other_modules_are_left_alone():
    taken, elsewhere = Llama(40), Llama(40).to("meta")
    taken.forward = lambda rows: rows
    others = [torch.nn.LayerNorm(40), torch.nn.LayerNorm(40, bias=False), torch.nn.Linear(40, 40)]
    model = torch.nn.Sequential(Centred(40), Gated(40), Biased(40), taken, elsewhere, Elsewhere(40), *others)
    before = [type(part) for part in model]
    assert install_norms(model) == []
    assert [type(part) for part in model] == before


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_a_step_is_that_of_torch(kind, calls):
    model, ids = tiny_model(kind), tokens(2, 30)
    with torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        other = copy.deepcopy(cache)
        expected = model(ids[:, -1:], past_key_values=cache).logits
        installed = install_norms(model)
        calls.clear()
        found = model(ids[:, -1:], past_key_values=other).logits
    assert (found - expected).abs().max() <= 1e-4
    assert len(calls) == len(installed)
    if kind == "llama":
        assert len(calls) == 2 * model.config.num_hidden_layers + 1


def test_sparsify_installs_them_and_restore_puts_torch_back(calls):
    model = tiny_model()
    before = {name: type(module) for name, module in model.named_modules()}
    gs.sparsify_(model, gs.Plan.uniform(model, 4))
    assert "FewRows" not in repr(model)
    other = copy.deepcopy(model)
    calls.clear()
    with torch.no_grad():
        model(tokens(1, 1))
    assert calls
    for each in (model, other):
        gs.restore_(each)
        assert {name: type(module) for name, module in each.named_modules()} == before
        assert not any(TERMS in module.__dict__ for module in each.modules())


def test_gradients_and_keywords_stay_with_torch(calls):
    model = torch.nn.Sequential(Llama(40))
    install_norms(model)
    calls.clear()
    rows = torch.randn(2, 40)
    model(rows).sum().backward()
    assert model[0].weight.grad is not None
    with torch.no_grad():
        model[0](rows=rows)
        assert not calls
        model(rows)
    assert calls == [(2, 40)]


def test_copies_and_pickles_go_on_working():
    model = torch.nn.Sequential(Llama(40))
    installed = install_norms(model)
    rows = torch.randn(2, 40)
    with torch.no_grad():
        expected = model(rows)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
            assert torch.equal(other(rows), expected)
            assert type(other[0]) is type(model[0])
            other[0].weight.add_(1)
            remove_norms(other)
            assert type(other[0]) is Llama
        assert torch.equal(model(rows), expected)
    remove_norms(installed)
    assert type(model[0]) is Llama

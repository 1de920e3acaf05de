"""Linear modules that multiply a few rows by the kernel: which ones, when, and put back exactly."""

import copy
import pickle

import pytest
import torch

import geosparse as gs
from geosparse.ops.cpu import library
from geosparse.sparsify import linear as module_under_test
from geosparse.sparsify.linear import FewRowsLinear, install_products, products

from ..tiny import EXTRA, tiny_model, tokens

pytestmark = pytest.mark.skipif(library() is None, reason="the C++ kernels are not built")


def linear_classes(model):
    return {type(part) for part in model.modules() if isinstance(part, torch.nn.Linear)}


@pytest.fixture
def calls(monkeypatch):
    """Shapes of the weights that the kernel was given."""
    found = []

    def noted(rows, weight, bias=None):
        result = product(rows, weight, bias)
        if result is not None:
            found.append(tuple(weight.shape))
        return result

    product = module_under_test.product
    monkeypatch.setattr(module_under_test, "product", noted)
    return found


@pytest.mark.parametrize("kind", sorted(EXTRA))
def test_a_step_through_the_cache_is_that_of_torch(kind, calls):
    model, ids = tiny_model(kind), tokens(2, 30)
    with torch.no_grad():
        cache = model(ids[:, :-1], use_cache=True).past_key_values
        other = copy.deepcopy(cache)
        expected = model(ids[:, -1:], past_key_values=cache).logits
        with products(model):
            found = model(ids[:, -1:], past_key_values=other).logits
    assert (found - expected).abs().max() <= 1e-4
    assert bool(calls) == any(isinstance(part, torch.nn.Linear) for part in model.modules())


def test_sparsify_installs_them_and_restore_puts_torch_back(calls):
    model = tiny_model()
    plan, ids = gs.Plan.uniform(model, 4), tokens(1, 1)
    gs.sparsify_(model, plan)
    assert linear_classes(model) == {FewRowsLinear}
    assert "FewRows" not in repr(model)
    with torch.no_grad():
        model(ids)
    assert len(calls) == sum(isinstance(part, torch.nn.Linear) for part in model.modules())
    gs.restore_(model)
    assert linear_classes(model) == {torch.nn.Linear}
    with gs.sparsified(model, plan, own_products=False):
        assert linear_classes(model) == {torch.nn.Linear}


def test_many_rows_and_gradients_stay_with_torch(calls):
    model = tiny_model().requires_grad_()
    ids = tokens(1, 40)
    with products(model):
        with torch.no_grad():
            model(ids, logits_to_keep=0)
        model(ids[:, :3]).logits.sum().backward()
    assert not calls
    assert all(weight.grad is not None for weight in model.parameters())


def test_other_modules_are_left_alone():
    class Mine(torch.nn.Linear):
        pass

    taken = torch.nn.Linear(4, 4)
    taken.forward = lambda rows: rows
    elsewhere = torch.nn.Linear(4, 4, device="meta")
    mixed = torch.nn.Linear(4, 4)
    mixed.bias = torch.nn.Parameter(mixed.bias.double())
    model = torch.nn.Sequential(Mine(4, 4), taken, elsewhere, mixed, torch.nn.Linear(4, 4))
    with products(model):
        assert [type(part) for part in model] == [Mine, *[torch.nn.Linear] * 3, FewRowsLinear]
    assert [type(part) for part in model] == [Mine, *[torch.nn.Linear] * 4]


def test_copies_and_pickles_go_on_working():
    model = torch.nn.Sequential(torch.nn.Linear(40, 3))
    rows = torch.randn(2, 40)
    install_products(model)
    with torch.no_grad():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):  # noqa: S301 - our own bytes
            assert torch.equal(other(rows), model(rows))


def test_a_copy_of_a_sparse_model_is_restored_by_itself():
    model = tiny_model()
    gs.sparsify_(model, gs.Plan.uniform(model, 4))
    other = copy.deepcopy(model)
    gs.restore_(other)
    assert linear_classes(other) == {torch.nn.Linear}
    assert linear_classes(model) == {FewRowsLinear}


def test_nothing_happens_without_kernels(monkeypatch):
    monkeypatch.setattr(module_under_test, "library", lambda: None)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    assert install_products(model) == []
    assert type(model[0]) is torch.nn.Linear

"""The second pass: prices under a plan, against autograd and against the first pass where the plan keeps everything."""

from dataclasses import replace

import pytest
import torch

import geosparse as gs
from geosparse.artifacts.interplay import MAX_PRICE_FACTOR, Interplay
from geosparse.geometry.tail_error import kept_errors
from geosparse.hf.layers import attention_layers
from geosparse.ops import TAILS
from geosparse.ops.spec import per_head
from geosparse.profile.capture import forward_backward, rows_of
from geosparse.profile.second_pass import divergence_and_slope, interplay_of_window, mean_interplay
from geosparse.profile.selector_errors import Scored, selections

from ..artifacts.test_profile import KINDS, LENGTH, model_of, profile_of

BUDGETS = (1, 3, 9)


def test_the_slope_of_the_divergence_is_its_gradient():
    torch.manual_seed(0)
    logits, dense = torch.randn(300, 11), torch.randn(300, 11)
    found, slope = divergence_and_slope(logits, dense)
    asked = logits.double().requires_grad_()
    target = dense.double().log_softmax(-1)
    expected = torch.nn.functional.kl_div(asked.log_softmax(-1), target, log_target=True, reduction="sum")
    expected.backward()
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(slope.double(), asked.grad, atol=1e-6)


@pytest.fixture(params=KINDS)
def case(request):
    model = model_of(request.param)
    layers = attention_layers(model)
    torch.manual_seed(1)
    window = torch.randint(0, model.config.vocab_size, (LENGTH,))
    return model, layers, window, torch.arange(2, LENGTH - 1, 3)


def plan_of(model, n):
    profile = profile_of(model)
    budgets = torch.full((profile.model.layers, profile.model.heads), n, dtype=torch.int64)
    return replace(gs.make_plan(profile, LENGTH, selector="topn"), n_keep=budgets)


def test_a_plan_that_keeps_everything_leaves_the_prices_of_the_first_pass(case):
    model, layers, window, positions = case
    found = interplay_of_window(model, layers, plan_of(model, LENGTH), window, positions, BUDGETS)
    _, calls, gradients = forward_backward(model, layers, window, positions, positions)
    assert found.among.abs().max() <= 1e-4 * found.alone.max()
    for index, (call, gradient) in enumerate(zip(calls, gradients, strict=True)):
        rows = rows_of(call)
        members = rows.alpha.shape[0] // rows.value.shape[0]
        scored = Scored(rows.query, rows.key, rows.scores, rows.seen, call.terms)
        value = rows.value.repeat_interleave(members, 0)
        errors = kept_errors(rows.alpha, value, selections("topn", scored, BUDGETS), rows.seen, rows.scores)
        for place, tail in enumerate(TAILS):
            expected = 0.5 * (errors.error[tail] * gradient.unsqueeze(-2)).sum(-1).square().mean(1)
            assert torch.allclose(found.alone[place, index], expected.double(), rtol=1e-3, atol=1e-9)


def test_the_sum_over_heads_of_the_pull_is_twice_the_divergence_where_errors_are_small(case):
    """Euler's theorem for the quadratic form: sum_h e_h . dKL/dz_h = 2 KL, up to third order in the errors."""
    model, layers, window, _ = case
    everywhere = torch.arange(LENGTH - 1)
    keep = LENGTH // 4
    plan = plan_of(model, keep)
    found = interplay_of_window(model, layers, plan, window, everywhere, (keep,))
    words = [per_head(plan.tails_of(index), layers[0].heads) for index in range(len(layers))]
    tails = torch.tensor([[list[str](TAILS).index(tail) for tail in row] for row in words])
    now = (2 * found.alone + found.among)[..., 0].gather(0, tails[None])[0]
    with torch.no_grad():
        dense = model(window[None]).logits[0]
        with gs.sparsified(model, plan):
            sparse = model(window[None]).logits[0]
    divergence = divergence_and_slope(sparse[:-1], dense[:-1])[0] / len(everywhere)
    # The rest is of third order: relative to a divergence of second order, its root times what the model makes of it.
    assert float(now.sum()) == pytest.approx(2 * divergence, rel=12 * divergence**0.5)


def test_the_plan_of_the_second_pass_selects_as_its_errors_are_measured():
    """Exactly: what the pass measures does not depend on the other selectors of the profile."""
    model = model_of("llama")
    found = [profile_of(model, selectors=selectors).interplay for selectors in (("topn",), ("topn", "lowbit"))]
    assert torch.equal(found[0].alone, found[1].alone)
    assert torch.equal(found[0].among, found[1].among)


def test_factors_are_bounded_and_neutral_without_interplay():
    alone = torch.tensor([1.0, 1.0, 1.0, 0.0]).double().view(1, 1, 4, 1)
    among = torch.tensor([0.0, 100.0, -100.0, 0.0]).double().view(1, 1, 4, 1)
    least = pytest.approx(1 / MAX_PRICE_FACTOR)
    assert Interplay(alone, among).factors.flatten().tolist() == [1.0, MAX_PRICE_FACTOR, least, 1.0]
    assert Interplay(alone * 0, among * 0).factors.eq(1).all()


def test_the_profile_carries_it_and_the_default_policy_goes_by_it(tmp_path):
    model = model_of()
    profile = profile_of(model)
    assert profile.interplay is not None
    loaded = gs.Profile.load(profile.save(tmp_path / "p.safetensors"))
    assert torch.equal(loaded.interplay.among, profile.interplay.among)
    factors = profile.interplay.factors
    assert torch.equal(profile.price("drop"), profile.fisher("drop") * factors[list(TAILS).index("drop")])
    first = replace(profile, interplay=None)
    for budget in (4, 9):
        assert torch.equal(gs.make_plan(first, budget).n_keep, gs.make_plan(profile, budget, "alone").n_keep)
        assert torch.equal(gs.make_plan(first, budget).n_keep, gs.make_plan(first, budget, "alone").n_keep)


def test_one_pass_is_a_profile_without_it(tmp_path):
    profile = profile_of(model_of(), second_pass=False)
    assert profile.interplay is None
    assert gs.Profile.load(profile.save(tmp_path / "p.safetensors")).interplay is None


def test_the_mean_over_windows():
    one, two = (Interplay(torch.full((3, 1, 1, 1), x), torch.full((3, 1, 1, 1), 2 * x)) for x in (1.0, 3.0))
    mean = mean_interplay([one, two])
    assert (mean.alone.unique().item(), mean.among.unique().item()) == (2.0, 4.0)

"""A few rows times weights by the kernel, against fp64, on every instruction set that this machine has."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geosparse.ops import cpu
from geosparse.ops.cpu.fast_call import direct
from geosparse.ops.cpu.linear import MOST_ROWS, product

from .test_cpu import isa  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"CPU kernels: {cpu.load_error()}")


product_module = sys.modules["geosparse.ops.cpu.linear"]


@pytest.fixture(params=["c", "python"])
def way(request, monkeypatch):
    """Who puts the call together."""
    if request.param == "python":
        monkeypatch.setattr(product_module, "direct", lambda: None)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def case(rows, width, columns, dtype, seed=0):
    """Rows, weights whose memory goes on with NaN behind each row, and a bias."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator).to(dtype)
    poisoned = torch.full((columns, width + 19), torch.nan, dtype=dtype)
    poisoned[:, :width] = torch.randn(columns, width, generator=generator).to(dtype)
    return x, poisoned[:, :width], torch.randn(columns, generator=generator).to(dtype)


def allowed(x, weight, bias):
    """What sums in fp32, in any order, and one rounding may be off by."""
    terms = x.double().abs() @ weight.double().abs().T + bias.double().abs()
    single, own = torch.finfo(torch.float32).eps, torch.finfo(x.dtype).eps
    smallest = torch.finfo(x.dtype).smallest_normal * own  # of a number too small for full precision
    return terms * single * (x.shape[1] + 1) + terms * own / 2 + smallest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", range(1, MOST_ROWS + 1))
@pytest.mark.parametrize(("width", "columns"), [(1, 1), (15, 3), (16, 1), (63, 7), (64, 8), (65, 33), (577, 130)])
def test_equals_fp64(isa, dtype, rows, width, columns):  # noqa: F811
    x, weight, bias = case(rows, width, columns, dtype)
    for given_bias in (bias, None):
        found = product(x, weight, given_bias)
        true = x.double() @ weight.double().T + (0 if given_bias is None else bias.double())
        assert found.dtype == dtype
        assert ((found.double() - true).abs() <= allowed(x, weight, bias)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, MOST_ROWS), st.integers(1, 200), st.integers(1, 300), st.integers(0, 99), st.integers(1, 4))
def test_a_row_is_what_it_is_alone(rows, width, columns, seed, threads):
    x, weight, bias = case(rows, width, columns, torch.float32, seed)
    before = torch.get_num_threads()
    together = product(x, weight, bias)
    torch.set_num_threads(threads)
    try:
        alone = [product(x[row], weight, bias) for row in range(rows)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.stack(alone))


def test_shapes_are_those_of_linear(way):
    x, weight, bias = case(6, 24, 5, torch.float32)
    assert product(x.view(2, 3, 24), weight, bias).shape == (2, 3, 5)
    assert product(x[0], weight, bias).shape == (5,)
    strided = x.view(2, 3, 24).transpose(0, 1)
    assert torch.equal(product(strided, weight), product(strided.contiguous(), weight))


def test_nan_and_infinity_are_not_hidden(way):
    x, weight, _ = case(2, 70, 4, torch.float32)
    x[0, 69], weight[2, 3] = torch.nan, torch.inf
    found = product(x, weight)
    assert found[0].isnan().all()
    assert found[1, 2].isinf()
    assert found[1, [0, 1, 3]].isfinite().all()


def test_what_stays_with_torch(way):
    x, weight, bias = case(2, 16, 4, torch.float32)
    assert product(x, weight, bias.double()) is None
    assert product(x, weight, bias.repeat(2)[::2]) is None
    assert product(torch.randn(MOST_ROWS + 1, 16), weight) is None
    assert product(x[:0], weight) is None
    assert product(x.double(), weight.double()) is None
    assert product(x.bfloat16(), weight) is None
    assert product(x[:, :15], weight) is None
    assert product(x, torch.randn(16, 4).T) is None
    assert product(x.to("meta"), weight) is None
    assert product(x, weight.to("meta")) is None
    assert product(torch.nn.Parameter(x), weight) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert product(x, weight) is None
    with torch.enable_grad():
        assert product(x, weight) is None
    with torch.inference_mode():
        assert product(x, torch.nn.Parameter(weight)) is not None


@pytest.mark.skipif(direct() is None, reason="fast_call.c was not built, or torch is older than 2.10")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_c_and_python_make_the_same_call(monkeypatch, dtype):
    x, weight, bias = case(3, 50, 9, dtype)
    for each in ((x, weight, bias), (x, weight, None), (x[1:2], weight[:4], bias[:4]), (x[0], weight, None)):
        by_c = direct().product(*each, MOST_ROWS, 2)
        assert by_c is not None
        assert torch.equal(product(*each), by_c)
        with monkeypatch.context() as patch:
            patch.setattr(product_module, "direct", lambda: None)
            assert torch.equal(product(*each), by_c)


@pytest.mark.skipif(direct() is None, reason="fast_call.c was not built, or torch is older than 2.10")
def test_call_of_anything_else():
    x, weight, bias = case(3, 50, 9, torch.float32)
    with pytest.raises(TypeError, match="5 arguments"):
        direct().product(x, weight)
    with pytest.raises(TypeError):
        direct().product(x, weight, bias, "x", 1)
    assert direct().product(x, weight, "b", 8, 1) is None
    for each in ((x, 3), (3, weight), (x.to("meta"), weight), (x, weight.to_sparse())):
        assert direct().product(*each, None, 8, 1) is None
    assert direct().product(x, weight, bias[::2], 8, 1) is None
    assert direct().product(x, weight, bias.double(), 8, 1) is None
    assert direct().product(x, weight[0], None, 8, 1) is None

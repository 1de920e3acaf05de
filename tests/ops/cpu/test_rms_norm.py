"""Root mean square norms of few rows by the kernel, against fp64, on every instruction set that this machine has."""

import pytest
import torch

from geosparse.ops import cpu
from geosparse.ops.cpu.fast_call import direct
from geosparse.ops.cpu.rms_norm import KINDS, MOST, rms_norm

from .test_cpu import isa  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(direct() is None, reason=f"CPU kernels: {cpu.load_error() or 'torch is too old'}")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def case(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(shape, generator=generator).to(dtype) * 3,
        torch.randn(shape[-1], generator=generator).to(dtype),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1,), (15,), (16,), (3, 17), (1, 1, 576), (2, 3, 4, 33), (1, 5, 256)])
def test_equals_fp64(isa, shape, dtype, kind):  # noqa: F811
    rows, weight = case(shape, dtype)
    found = rms_norm(rows, weight, 1e-5, kind)
    assert found.dtype == dtype
    assert found.shape == rows.shape
    wide = rows.double()
    quotient = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    true = quotient * (1 + weight.double() if kind == "shifted" else weight.double())
    # One rounding, or two; the sum of squares and the root in fp32; and 1 + weight.
    single, own = torch.finfo(torch.float32).eps, torch.finfo(dtype).eps * (1 if kind == "twice" else 0.5)
    most = true.abs() * (own + single * (shape[-1] + 4)) + single * quotient.abs() + torch.finfo(dtype).smallest_normal
    assert ((found.double() - true).abs() <= most).all()


def test_a_row_is_what_it_is_alone():
    rows, weight = case((7, 100), torch.float32)
    together = rms_norm(rows, weight, 1e-6, "once")
    assert torch.equal(together, torch.stack([rms_norm(row, weight, 1e-6, "once") for row in rows]))


def test_what_is_no_number_stays_in_its_row():
    rows, weight = case((3, 40), torch.float32)
    rows[1, 7] = torch.nan
    found = rms_norm(rows, weight, 1e-6, "twice")
    assert found[1].isnan().all()
    assert found[::2].isfinite().all()
    assert rms_norm(torch.zeros(2, 40), weight, 1e-6, "twice").eq(0).all()


def test_what_stays_with_torch():
    rows, weight = case((3, 40), torch.float32)
    given = {
        "not contiguous": (rows.T.contiguous().T, weight),
        "other width": (rows, weight[:39].clone()),
        "strided weight": (rows, torch.randn(80)[::2]),
        "other dtype": (rows.bfloat16(), weight),
        "fp64": (rows.double(), weight.double()),
        "no rows": (rows[:0], weight),
        "matrix": (rows, weight[None]),
        "many": (torch.randn(MOST // 40 + 1, 40), weight),
        "parameter": (torch.nn.Parameter(rows), weight),
        "meta": (rows.to("meta"), weight.to("meta")),
    }
    assert rms_norm(rows, weight, 1e-6, "once") is not None
    for name, (x, w) in given.items():
        assert rms_norm(x, w, 1e-6, "once") is None, name
    with torch.enable_grad():
        assert rms_norm(rows, weight, 1e-6, "once") is None
    with torch.autocast("cpu", torch.bfloat16):
        assert rms_norm(rows, weight, 1e-6, "once") is None

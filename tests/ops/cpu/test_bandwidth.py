"""Rows read in any order are added up, each as often as it is asked for."""

import pytest
import torch

from geosparse.ops import cpu
from geosparse.ops.cpu.bandwidth import AT_ONCE, WIDTH, read_rows

from .test_cpu import isa  # noqa: F401 - a fixture

pytestmark = pytest.mark.skipif(cpu.library() is None, reason=f"CPU kernels: {cpu.load_error()}")


@pytest.mark.parametrize("count", [0, 1, AT_ONCE - 1, AT_ONCE, 3 * AT_ONCE + 5])
@pytest.mark.parametrize("width", [WIDTH, 2 * WIDTH, 7 * WIDTH])
def test_rows_are_added_up(isa, count, width):  # noqa: F811
    generator = torch.Generator().manual_seed(count)
    table = torch.randint(-9, 10, (50, width), generator=generator).float()
    rows = torch.randint(50, (count,), generator=generator)
    assert read_rows(table, rows) == table[rows].sum().item()  # whole numbers: exact in any order


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (torch.ones(4, WIDTH + 1), torch.zeros(2, dtype=torch.int64)),
        (torch.ones(4, WIDTH, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)),
        (torch.ones(4, 2 * WIDTH)[:, ::2], torch.zeros(2, dtype=torch.int64)),
        (torch.ones(4, WIDTH), torch.zeros(2, dtype=torch.int32)),
        (torch.ones(4, WIDTH), torch.zeros(4, dtype=torch.int64)[::2]),
    ],
)
def test_other_layouts_are_refused(table, rows):
    with pytest.raises(ValueError, match="has to be contiguous"):
        read_rows(table, rows)

"""The gate before any timing."""

import pytest
import torch

from eval.gpu import correctness
from geosparse import GeosparseError
from tests.ops.triton.material import DEVICE, needs_kernels


@needs_kernels
def test_a_wrong_kernel_stops_everything(monkeypatch):
    monkeypatch.setattr(correctness, "CASES", [(1, 64, 30)])
    monkeypatch.setattr(correctness, "DTYPES", (torch.float32,))
    real = correctness.triton_attention

    def wrong(*args, **kwargs):
        found = real(*args, **kwargs)
        return found._replace(output=found.output + 0.01)

    monkeypatch.setattr(correctness, "triton_attention", wrong)
    with pytest.raises(GeosparseError, match="nothing was timed"):
        correctness.check(DEVICE)

"""Calls of the CPU kernels; `tests/eval/test_speed.py` runs them through the command."""

import pytest
import torch

import geosparse as gs
from eval.benchmarks.cpu_calls import uneven_budgets
from geosparse.hf.identity import ModelIdentity


def test_a_plan_of_another_shape_is_refused():
    identity = ModelIdentity("tiny", "LlamaForCausalLM", 2, 6, 2, 64, "0123456789abcdef")
    plan = gs.Plan(torch.ones(2, 6, dtype=torch.int64), "centroid", 64, "uniform", {}, identity)
    with pytest.raises(gs.GeosparseError, match="The plan is for 6 heads, smollm2 has 9"):
        uneven_budgets("smollm2", 64, "fp32", plan, "topn")

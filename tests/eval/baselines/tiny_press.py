"""A press on a tiny model."""

from __future__ import annotations

from typing import Any

import torch

from eval.baselines.presses import Press
from geosparse.artifacts.plan import Plan
from geosparse.hf.identity import identify

LENGTH, SCORED = 240, 20


def press(model: Any, name: str, density: float) -> Press:
    keep = torch.full((2, 6), round(density * (LENGTH - SCORED - 1)), dtype=torch.int64)
    plan = Plan(keep, "centroid", LENGTH - SCORED - 1, "uniform", {}, identify(model), share_kv=True)
    return Press("peer", name, density, plan if name == "lukv" else None)

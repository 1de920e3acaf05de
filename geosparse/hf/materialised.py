"""Whether a model has its weights: on the device `meta` there are shapes only."""

from __future__ import annotations

from typing import Any

from ..errors import GeosparseError


def check_materialised(model: Any) -> None:
    """Raise GeosparseError where weights are on the device `meta`, without anything that brings them when needed."""
    empty = next((name for name, weight in model.named_parameters() if weight.is_meta), None)
    if empty is not None and not any(hasattr(module, "_hf_hook") for module in model.modules()):
        raise GeosparseError(
            f"This {type(model).__name__} has no weights: {empty} is on the device meta; load the model with its "
            "weights, e.g. by from_pretrained or gs.load_model."
        )

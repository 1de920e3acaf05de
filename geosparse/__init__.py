"""geosparse: per-head sparse attention for Hugging Face causal language models, planned from measured geometry.

Importing the package costs nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .artifacts.plan import Plan
    from .artifacts.profile import Profile
    from .errors import GeosparseError
    from .hf.loading import load_model
    from .integrations.model_folder import find_plan
    from .measure.loss import score
    from .plan.make_plan import make_plan
    from .profile.profiler import ProfileConfig, profile_model
    from .sparsify.cache.sparse_cache import SparseCache
    from .sparsify.patch import restore_, sparsified, sparsify_
    from .sparsify.receipt import Receipt
    from .text import load_texts, token_windows

_HOMES = {
    "GeosparseError": "errors",
    "Plan": "artifacts.plan",
    "Profile": "artifacts.profile",
    "ProfileConfig": "profile.profiler",
    "Receipt": "sparsify.receipt",
    "SparseCache": "sparsify.cache.sparse_cache",
    "find_plan": "integrations.model_folder",
    "load_model": "hf.loading",
    "load_texts": "text",
    "make_plan": "plan.make_plan",
    "profile_model": "profile.profiler",
    "restore_": "sparsify.patch",
    "score": "measure.loss",
    "sparsified": "sparsify.patch",
    "sparsify_": "sparsify.patch",
    "token_windows": "text",
}

__all__ = [
    "GeosparseError",
    "Plan",
    "Profile",
    "ProfileConfig",
    "Receipt",
    "SparseCache",
    "find_plan",
    "load_model",
    "load_texts",
    "make_plan",
    "profile_model",
    "restore_",
    "score",
    "sparsified",
    "sparsify_",
    "token_windows",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'geosparse' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))

"""geosparse: per-head sparse attention for Hugging Face causal language models, planned from measured geometry.

Importing the package costs nothing: each name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .cache import SparseCache
    from .errors import GeosparseError
    from .integrations.model_folder import find_plan
    from .models import load_model
    from .patch import restore_, sparsified, sparsify_
    from .plan import Plan
    from .planner import make_plan
    from .profile import Profile
    from .profiler import ProfileConfig, profile_model
    from .runtime.receipt import Receipt
    from .scoring import score
    from .text import load_texts, token_windows

_HOMES = {
    "GeosparseError": "errors",
    "Plan": "plan",
    "Profile": "profile",
    "ProfileConfig": "profiler",
    "Receipt": "runtime.receipt",
    "SparseCache": "cache",
    "find_plan": "integrations.model_folder",
    "load_model": "models",
    "load_texts": "text",
    "make_plan": "planner",
    "profile_model": "profiler",
    "restore_": "patch",
    "score": "scoring",
    "sparsified": "patch",
    "sparsify_": "patch",
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

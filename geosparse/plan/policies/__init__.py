"""Policies: each turns the measured errors and a number of tokens into budgets per head.

One file per policy, and one line here. Another package adds one by an entry point in the group `geosparse.policies`.
"""

from __future__ import annotations

from ...utils.registry import Registry
from .policy import Policy, adopt, policy

DEFAULT_POLICY = "fisher"
POLICIES: Registry[Policy] = Registry(
    "policy",
    __name__,
    (
        "fisher",
        "alone",
        "output_error",
        "mass",
        "separability",
        "entropy",
        "regime",
        "uniform",
        "permuted",
        "random",
    ),
    "geosparse.policies",
    adopt,
)

__all__ = ["DEFAULT_POLICY", "POLICIES", "Policy", "policy"]

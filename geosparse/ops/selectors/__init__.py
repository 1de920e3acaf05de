"""Selectors: which N tokens a head keeps. One file each, all of the same shape; plain PyTorch, the kernels' truth.

One file per selector, and one line here. Another package adds one by an entry point in the group `geosparse.selectors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...errors import NotInstalledError, did_you_mean
from ...utils.registry import Registry
from ..tails import FITTED, TailShares, shares_of
from .rule import SelectorRule, adopt, selector

if TYPE_CHECKING:
    from .selection import choose
    from .view import Choice, SelectorView

SELECTORS: Registry[SelectorRule] = Registry(
    "selector",
    __name__,
    (
        "topn",
        "lowbit",
        "paged",
        "paged+lowbit",
        "sink_recent",
    ),
    "geosparse.selectors",
    adopt,
)
EXACT = "topn"
"""What every other selector is an approximation of; serves where pages cannot be."""
ECONOMICAL = "lowbit"
"""The default where its measured errors are nearly those of EXACT."""
AUTO = "auto"
"""A request, no selector: for each head the one that costs least."""
MEASURED = (EXACT, ECONOMICAL)
"""What a profile measures, and `doctor --calibrate` times, unless others are asked for."""

# What needs torch is loaded when it is first used, so that the command line can list the selectors at once.
_HOMES = {"Choice": "view", "SelectorView": "view", "choose": "selection"}


def rules_of(names: str | Sequence[str]) -> list[SelectorRule]:
    """The distinct selectors among `names`."""
    return [SELECTORS[name] for name in ((names,) if isinstance(names, str) else sorted(set(names)))]


def needs_index(names: str | Sequence[str]) -> bool:
    """Whether any of the selectors `names` reads a KeyIndex."""
    return any(rule.indexed for rule in rules_of(names))


def reads_codes(names: str | Sequence[str]) -> bool:
    """Whether any of the selectors `names` reads the coded keys of the index, not only its bounds."""
    return any(rule.coded for rule in rules_of(names))


def fits(name: str, tail: str | TailShares) -> bool:
    """Whether heads with the selector `name` may have `tail`: one that goes by no score does not know what the others
    weigh, which all tails but a renormalised one have to know."""
    return SELECTORS[name].knows_rest or (tail != FITTED and shares_of(tail).renormalize)


def check_installed(name: str) -> None:
    """Raise NotInstalledError unless the selector `name`, which a file needs, is there."""
    if name not in SELECTORS:
        hint = did_you_mean(name, SELECTORS).rstrip(".")
        raise NotInstalledError(f"the selector {name!r} is not installed: install the package that adds it ({hint}).")


def shareable() -> str:
    """The selectors that the heads of a KV group can share, for error sentences."""
    return " and ".join(sorted(name for name in SELECTORS if SELECTORS[name].shareable))


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


__all__ = [
    "AUTO",
    "ECONOMICAL",
    "EXACT",
    "MEASURED",
    "SELECTORS",
    "Choice",
    "SelectorRule",
    "SelectorView",
    "check_installed",
    "choose",
    "fits",
    "needs_index",
    "reads_codes",
    "rules_of",
    "selector",
    "shareable",
]

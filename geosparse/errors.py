"""The one exception type for mistakes that the user can mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GeosparseError(ValueError):
    """Bad input, said in one sentence: what is wrong, what was found, what to do. The command line exits with 2."""


class NotInstalledError(GeosparseError):
    """A file is sound, and needs what another package adds, which is not there."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the nearest known names, or all of them.

    Args:
        name: What the user wrote.
        known: The accepted names.
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {', '.join(names)}."

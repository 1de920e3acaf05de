"""Progress bars: on a terminal only, on standard error, so that standard output stays for results."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, show: bool = True) -> Iterable[T]:
    """`items` with a progress bar and time left, when `show` is set and standard error is a terminal."""
    if not show or not sys.stderr.isatty():
        return items
    from tqdm import tqdm

    total = len(items) if isinstance(items, Sized) else None
    bar: Iterable[T] = tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True)
    return bar

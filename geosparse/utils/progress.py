"""Progress bars: on a terminal only, on standard error, so that standard output stays for results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, show: bool = True) -> Iterable[T]:
    """`items` with a progress bar and time left, when `show` is set and standard error is a terminal."""
    if not show or not _on_terminal():
        return items
    from tqdm import tqdm

    total = len(items) if isinstance(items, Sized) else None
    bar: Iterable[T] = tqdm(items, desc=what, total=total, leave=False, dynamic_ncols=True)
    return bar


def _on_terminal() -> bool:
    """Whether standard error is there, open and a terminal."""
    stream = sys.stderr
    return stream is not None and not getattr(stream, "closed", False) and stream.isatty()


@contextmanager
def steps(total: int, what: str, show: bool = True) -> Iterator[Callable[[int], object]]:
    """A progress bar over `total` units of work, under the same conditions; yields what takes the units just done."""
    if not show or not _on_terminal():
        yield lambda units: None
        return
    from tqdm import tqdm

    form = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"
    with tqdm(desc=what, total=total, leave=False, dynamic_ncols=True, bar_format=form) as bar:
        yield bar.update

"""Data sets of the hub from folders of this machine, without a network and whatever the working directory is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

# Of the thread that asks: another one, which loads data sets of its own meanwhile, gets what it names.
_FOLDER: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def data_below(folder: Path | None) -> Iterator[None]:
    """Let `datasets.load_dataset("owner/name")` take the folder `owner/name` below `folder`, where there is one.

    lm-eval's tasks name their data sets in YAML and in code, so that no configuration reaches all of them.
    """
    if folder is None or not folder.is_dir():
        yield
        return
    import datasets

    load_public = datasets.load_dataset

    @wraps(load_public)
    def load_dataset(path: str, *arguments: Any, **options: Any) -> Any:
        below = _FOLDER.get()
        local = None if below is None else below / path
        return load_public(str(local) if local is not None and local.is_dir() else path, *arguments, **options)

    token = _FOLDER.set(folder.resolve())
    datasets.load_dataset = load_dataset
    try:
        yield
    finally:
        datasets.load_dataset = load_public
        _FOLDER.reset(token)

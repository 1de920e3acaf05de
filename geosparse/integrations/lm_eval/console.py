"""What lm-eval logs and raises, made fit for our command line: a level and a prefix, and one sentence per error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...errors import GeosparseError, did_you_mean
from ...hf.loading import reason


@contextmanager
def as_sentence(what: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Raise errors of these kinds as a GeosparseError that says `what` failed, and the first line of why."""
    try:
        yield
    except GeosparseError:
        raise
    except kinds as error:
        raise GeosparseError(f"{what}: {reason(error)}.") from error


def log_level(config: Any) -> int:
    """What `--verbosity` says; by default warnings, and with `--write_out` the prompts, which lm-eval logs as info."""
    if not config.verbosity:
        return logging.INFO if config.write_out else logging.WARNING
    name, levels = str(config.verbosity).upper(), logging.getLevelNamesMapping()
    if name not in levels:
        raise GeosparseError(f"Unknown log level {name!r}; {did_you_mean(name, levels)}")
    return levels[name]


@contextmanager
def logging_at(level: int) -> Iterator[None]:
    """lm-eval's log at `level`, on standard error unless the caller has set up a place for it."""
    logger = logging.getLogger("lm_eval")
    before, handlers = logger.level, list(logger.handlers)
    if not handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("lm-eval: %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.handlers = handlers

"""What the studies of the runtime share: a prompt of a given length, a dense prefix, and the memory of the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import geosparse as gs
from geosparse.cache import SparseCache
from geosparse.provenance import device_name, versions


def windows(tokenizer: Any, text: str, length: int, count: int) -> torch.Tensor:
    """Exactly `count` token windows `[count, length]` of a text.

    Raises:
        GeosparseError: The text is too short.
    """
    found = gs.token_windows(tokenizer, gs.load_texts(text), length, count)
    if len(found) < count:
        raise gs.GeosparseError(
            f"{text} holds {len(found)} windows of {length} tokens, not {count}: give a longer text or fewer windows."
        )
    return found


def dense_prefix(model: Any, ids: torch.Tensor) -> SparseCache:
    """The cache of `ids` `[1, T]` read by dense attention."""
    cache = SparseCache(model.config)
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def resident_bytes() -> int:
    """Memory of this process that is in RAM at this moment."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most that it ever was."""
    return _status("VmHWM")


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def about(schema: str, model: str, text: str) -> dict[str, Any]:
    """What was measured, where."""
    return {
        "schema": schema,
        "model": Path(model).name if Path(model).exists() else model,
        "text": Path(text).name,
        "device": device_name(),
        "provenance": versions(),
    }

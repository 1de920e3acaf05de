"""The break-even: the context from which on sparse decoding is faster than dense, measured per device and shape."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ..errors import GeosparseError
from ..hf.aliases import cache_dir
from ..hf.dense import attend_dense
from ..ops import (
    AttentionCall,
    HeadRules,
    IndexSlot,
    Selector,
    Terms,
    best_path,
    remember_index,
    remember_value_sum,
)
from ..ops.dispatch import SERVING_PATHS
from ..ops.selectors import MEASURED
from ..utils.files import is_count, locked, read_json, write_json
from ..utils.provenance import device_name

SCHEMA = "geosparse.breakeven/2"
CONTEXTS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
# On a GPU a dense step takes as long as its launches up to contexts that a CPU needs milliseconds for.
LONGER = (16384, 32768, 65536)
KEPT = 64
REPEATS = 15
# Rotated, so that the processor's cache does not hold one layer's keys from step to step.
LAYERS = 12
NEVER = 1 << 30


@dataclass(frozen=True)
class Shape:
    """What a decode step's time depends on, besides the context."""

    heads: int
    kv_heads: int
    dim: int
    dtype: torch.dtype
    device: torch.device

    @property
    def key(self) -> str:
        """The name under which its measurement is kept."""
        threads = f" {torch.get_num_threads()} threads" if self.device.type == "cpu" else ""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{device_name(self.device.type)}{threads} {self.heads}/{self.kv_heads}x{self.dim} {dtype}"


def calibrate(shape: Shape, selectors: tuple[Selector, ...] = MEASURED) -> dict[str, int]:
    """Measure and remember, per selector, the context from which on sparse decoding is no slower than dense.

    Args:
        shape: Of one attention layer.
        selectors: Which to time, at `KEPT` tokens per head.

    Returns:
        Tokens by selector; `NEVER` where dense was faster at the longest context.
    """
    result: dict[str, int] = {}
    for selector in selectors:
        faster_from = NEVER
        for context in reversed(CONTEXTS + (LONGER if shape.device.type == "cuda" else ())):
            dense, sparse = _times(shape, context, selector)
            if sparse > dense:
                break
            faster_from = context
        result[selector] = 1 if faster_from == CONTEXTS[0] else faster_from
    with locked(_file()):
        table = _load()
        table[shape.key] = table.get(shape.key, {}) | result
        write_json(_file(), {"schema": SCHEMA, "shapes": table})
    return result


def break_even(shape: Shape, selector: str) -> int:
    """What `calibrate` measured for this shape on this device; contexts below are faster dense.

    Raises:
        GeosparseError: Nothing was measured for it.
    """
    found = _load().get(shape.key, {}).get(selector)
    if found is None:
        raise GeosparseError(
            f"The break-even of {selector} is not measured for {shape.key}: run `geosparse doctor --calibrate` with "
            "this model, or give a number of tokens."
        )
    return found


def _file() -> Any:
    return cache_dir() / "breakeven.json"


def _load() -> dict[str, dict[str, int]]:
    """The table; empty where there is none, or one that cannot be read, as it can be measured again."""
    try:
        data = read_json(_file(), "table of break-evens")
    except GeosparseError:
        return {}
    shapes = data.get("shapes") if isinstance(data, dict) and data.get("schema") == SCHEMA else None
    if not isinstance(shapes, dict):
        return {}
    rows = {key: row for key, row in shapes.items() if isinstance(row, dict)}
    return {key: {word: n for word, n in row.items() if is_count(n)} for key, row in rows.items()}


def _times(shape: Shape, context: int, selector: Selector) -> tuple[float, float]:
    """Median seconds of one layer's decode step, dense and sparse."""
    generator = torch.Generator().manual_seed(0)
    calls = []
    for _ in range(LAYERS):
        query = torch.randn(1, shape.heads, 1, shape.dim, generator=generator, dtype=torch.float32, device="cpu").to(
            shape.device, shape.dtype
        )
        key, value = (
            torch.randn(
                1, shape.kv_heads, context, shape.dim, generator=generator, dtype=torch.float32, device="cpu"
            ).to(shape.device, shape.dtype)
            for _ in range(2)
        )
        remember_index(key, IndexSlot())
        remember_value_sum(value, value.sum(-2, dtype=torch.float64))
        calls.append((query, key, value))
    scaling = shape.dim**-0.5
    sparse = SERVING_PATHS[best_path(*calls[0], None)]
    rules = HeadRules((min(KEPT, max(1, context // 2)),) * shape.heads, "centroid", selector)

    def dense_step(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        attend_dense(AttentionCall(query, key, value, None, None, Terms(scaling)))

    def sparse_step(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        sparse(AttentionCall(query, key, value, None, None, Terms(scaling)), rules)

    times: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad():
        for repeat in range(REPEATS + 1):
            for step, seconds in zip((dense_step, sparse_step), times, strict=True):
                start = _now(shape.device)
                for call in calls:
                    step(*call)
                if repeat:
                    seconds.append(_now(shape.device) - start)
    return median(times[0]), median(times[1])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()

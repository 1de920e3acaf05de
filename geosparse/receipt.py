"""The receipt: what a sparsified model really attended to, counted where it happened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from .errors import GeosparseError

# Counts wait in memory, on the device, until there are so many calls or query rows.
MAX_PENDING = 8192
MAX_PENDING_ROWS = 1 << 20


class _Count(NamedTuple):
    layer: int
    rows: torch.Tensor
    kept: torch.Tensor


class Receipt:
    """Totals per layer and query head since the model was sparsified (or since `reset`)."""

    def __init__(self, n_keep: torch.Tensor, names: list[str]) -> None:
        """Args: the plan's budgets `[layers, Hq]` and the layers' names."""
        self._n_keep = n_keep
        self._names = names
        self._lock = threading.Lock()
        self._paused = False
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        with self._lock:
            self._pending: list[_Count] = []
            self._pending_rows = 0
            self._totals = torch.zeros(4, *self._n_keep.shape, dtype=torch.int64)

    def count(self, layer: int, visible_rows: torch.Tensor, kept: torch.Tensor) -> None:
        """Add one attention call; nothing is read back from the device before somebody looks.

        Args:
            layer: The layer's place in the plan.
            visible_rows: `[B, T]` tokens each query sees.
            kept: `[Hq]` tokens kept, summed over batch and queries.
        """
        with self._lock:
            if self._paused:
                return
            self._pending.append(_Count(layer, visible_rows, kept))
            self._pending_rows += visible_rows.numel()
            if self._pending_rows > MAX_PENDING_ROWS or len(self._pending) > MAX_PENDING:
                self._settle()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside the block."""
        with self._lock:
            before = self._paused
            self._paused = True
        try:
            yield
        finally:
            with self._lock:
                self._paused = before

    def _settle(self) -> None:
        """Add what is pending to the totals; the lock is held."""
        for layer in {count.layer for count in self._pending}:
            counts = [count for count in self._pending if count.layer == layer]
            rows, times = torch.unique(torch.cat([count.rows.flatten() for count in counts]), return_counts=True)
            rows, times = rows.cpu(), times.cpu()
            self._totals[0, layer] += times[rows > 0].sum()
            self._totals[1, layer] += (rows * times).sum()
            self._totals[2, layer] += torch.stack([count.kept for count in counts]).sum(0).cpu()
            self._totals[3, layer] += (torch.minimum(rows, self._n_keep[layer][:, None]) * times).sum(-1)
        self._pending = []
        self._pending_rows = 0

    def _total(self, place: int) -> torch.Tensor:
        with self._lock:
            self._settle()
            return self._totals[place].clone()

    @property
    def queries(self) -> torch.Tensor:
        """`[layers, Hq]` int64, queries that saw at least one token."""
        return self._total(0)

    @property
    def visible(self) -> torch.Tensor:
        """`[layers, Hq]` int64, tokens they saw."""
        return self._total(1)

    @property
    def kept(self) -> torch.Tensor:
        """`[layers, Hq]` int64, tokens the selection kept, counted in the attention function."""
        return self._total(2)

    @property
    def planned(self) -> torch.Tensor:
        """`[layers, Hq]` int64, tokens the plan says: the sum over queries of min(n_keep, visible)."""
        return self._total(3)

    @property
    def density(self) -> float:
        """Kept over visible tokens, all heads together; NaN before the first query."""
        visible = int(self.visible.sum())
        return int(self.kept.sum()) / visible if visible else float("nan")

    @property
    def mean_kept(self) -> float:
        """Tokens kept per query and head; NaN before the first query."""
        queries = int(self.queries.sum())
        return int(self.kept.sum()) / queries if queries else float("nan")

    def verify(self) -> None:
        """Check the counts against the plan; nothing to check before the first query.

        Raises:
            GeosparseError: A planned layer was not reached, or kept another number of tokens than planned.
        """
        queries, kept, planned = self.queries, self.kept, self.planned
        if not queries.any():
            return
        for layer, name in enumerate(self._names):
            if not queries[layer].any():
                raise GeosparseError(f"The planned layer {name} was not reached: the model did not run sparse there.")
            wrong = (kept[layer] != planned[layer]).nonzero().flatten().tolist()
            if wrong:
                head = wrong[0]
                raise GeosparseError(
                    f"Layer {name}, head {head} kept {int(kept[layer, head])} tokens where the plan says "
                    f"{int(planned[layer, head])}."
                )

    def __getstate__(self) -> dict[str, Any]:
        """A copy counts on its own: everything but the lock."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The copied counts with a lock of their own."""
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """One line: how much was kept."""
        return f"Receipt(queries={int(self.queries[:, 0].max())}, density={self.density:.4f})"

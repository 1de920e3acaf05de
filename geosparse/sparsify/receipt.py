"""The receipt: what a sparsified model really attended to, counted where it happened."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from ..errors import GeosparseError
from ..ops import Budgets
from ..ops.modes import lasting
from ..ops.serving import Serving

# Counts wait in memory, on the device, until there are so many calls or query rows.
MAX_PENDING = 8192
MAX_PENDING_ROWS = 1 << 20


class _Count(NamedTuple):
    layer: int
    rows: torch.Tensor
    kept: torch.Tensor | None  # None: everything visible was
    planned: bool  # by the plan; otherwise on purpose, and a note says so


class Receipt:
    """Totals per layer and query head since the model was sparsified (or since `reset`)."""

    def __init__(self, budgets: Budgets, names: list[str]) -> None:
        """A receipt that counts from zero.

        Args:
            budgets: Of the plan, `[layers, Hq]`.
            names: Of the layers.
        """
        self._budgets = budgets
        self._names = names
        self._notes: dict[tuple[int, str, str], None] = {}
        self._lock = threading.Lock()
        self._paused: dict[int, int] = {}  # thread -> blocks of `paused` that it is in
        self._serving: Serving | None = None
        self._missing: str | None = None
        self.reset()

    def served_by(self, serving: Serving, missing: str | None) -> None:
        """Remember the path that serves, and the sentence about kernels that are missing, for `notes`."""
        self._serving, self._missing = serving, missing

    @property
    def path(self) -> str | None:
        """What serves sparse attention where nothing else is noted, e.g. "cpu (C++ avx512)", "torch" or "triton"."""
        return None if self._serving is None else self._serving.path

    @property
    def path_reason(self) -> str | None:
        """Why it is that path, in a few words."""
        return None if self._serving is None else self._serving.why

    def reset(self) -> None:
        """Forget all counts."""
        with self._lock:
            self._pending: list[_Count] = []
            self._pending_rows = 0
            self._totals = torch.zeros(4, *self._budgets.n_keep.shape, dtype=torch.int64, device="cpu")

    def record(
        self, layer: int, visible_rows: torch.Tensor, kept: torch.Tensor | None, mode: str, why: str = ""
    ) -> None:
        """Add one attention call: by the plan, or where there is a `why` as `count_otherwise`; else as there."""
        if why or kept is None:
            self.count_otherwise(layer, visible_rows, kept, mode, why)
        else:
            self.count(layer, visible_rows, kept)

    def count(self, layer: int, visible_rows: torch.Tensor, kept: torch.Tensor) -> None:
        """Add one attention call; nothing is read back from the device before somebody looks.

        Args:
            layer: The layer's place in the plan.
            visible_rows: `[B, T]` tokens each query sees.
            kept: `[Hq]` tokens kept, summed over batch and queries.
        """
        self._add(_Count(layer, visible_rows, kept, True))

    def count_otherwise(
        self, layer: int, visible_rows: torch.Tensor, kept: torch.Tensor | None, served: str, why: str
    ) -> None:
        """Add one attention call that did not follow the plan, on purpose; a note says so.

        Args:
            layer: The layer's place in the plan.
            visible_rows: `[B, T]` tokens each query sees.
            kept: `[Hq]` tokens kept, summed over batch and queries; None: all that were visible.
            served: How, in a word.
            why: Why, in a few words.
        """
        self.note(layer, served, why)
        self._add(_Count(layer, visible_rows, kept, False))

    def note(self, layer: int, served: str, why: str) -> None:
        """Say once that a layer was served otherwise than its plan says, and why."""
        with self._lock:
            self._notes.setdefault((layer, served, why))

    @property
    def notes(self) -> list[str]:
        """Where layers were served otherwise than their plan says: "layers 0-2, 4: topn, because ..."."""
        reasons: dict[tuple[str, str], list[int]] = {}
        with self._lock:
            for layer, served, why in self._notes:
                reasons.setdefault((served, why), []).append(layer)
        said = [f"layers {_ranges(layers)}: {served}, because {why}" for (served, why), layers in reasons.items()]
        return said if self._missing is None else [self._missing, *said]

    def _add(self, count: _Count) -> None:
        if torch.is_grad_enabled() and torch._C._current_graph_task_id() >= 0:
            return  # a backward pass computes again what was counted before: gradient checkpointing
        with self._lock:
            if self._paused and threading.get_ident() in self._paused:
                return
            self._pending.append(count)
            self._pending_rows += count.rows.numel()
            if self._pending_rows > MAX_PENDING_ROWS or len(self._pending) > MAX_PENDING:
                self._settle()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing of this thread inside the block; other threads go on counting."""
        thread = threading.get_ident()
        with self._lock:
            self._paused[thread] = self._paused.get(thread, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._paused[thread] -= 1
                if not self._paused[thread]:
                    del self._paused[thread]

    def _settle(self) -> None:
        """Add what is pending to the totals, all of it or, if anything fails, nothing; the lock is held."""
        if not self._pending:
            return
        with lasting():
            totals = self._totals.clone()
            self._add_to(totals)
        self._totals, self._pending, self._pending_rows = totals, [], 0

    def _add_to(self, totals: torch.Tensor) -> None:
        kinds = {(count.layer, count.kept is None, count.planned) for count in self._pending}
        for layer, all_kept, planned in kinds:
            counts = [
                count
                for count in self._pending
                if (count.layer, count.kept is None, count.planned) == (layer, all_kept, planned)
            ]
            rows, times = torch.unique(torch.cat([count.rows.flatten() for count in counts]), return_counts=True)
            rows, times = rows.cpu(), times.cpu()
            seen = (rows * times).sum()
            tables = [count.kept for count in counts if count.kept is not None]
            kept = seen if all_kept else torch.stack(tables).sum(0).cpu()
            totals[0, layer] += times[rows > 0].sum()
            totals[1, layer] += seen
            totals[2, layer] += kept
            totals[3, layer] += (
                (torch.minimum(rows, self._budgets.of(layer).at(rows)) * times).sum(-1) if planned else kept
            )

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
        """`[layers, Hq]` int64, tokens the plan says: min(N, visible) per query, or all where dense on purpose."""
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
        """A copy counts on its own, from what is counted so far: everything but the lock and who pauses."""
        with self._lock:
            self._settle()
            state = {name: value for name, value in self.__dict__.items() if name != "_lock"}
            return state | {"_notes": dict(self._notes), "_pending": [], "_paused": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The copied counts with a lock of their own."""
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """One line: how much was kept."""
        return f"Receipt(queries={int(self.queries[:, 0].max())}, density={self.density:.4f})"


def _ranges(numbers: list[int]) -> str:
    """ "0-2, 4" for [0, 1, 2, 4]."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)

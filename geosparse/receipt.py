"""The receipt: what a sparsified model really attended to, counted where it happened."""

from __future__ import annotations

import threading
from typing import Any

import torch

from .errors import GeosparseError


class Receipt:
    """Totals per layer and query head since the model was sparsified (or since `reset`).

    Attributes:
        queries: `[layers, Hq]` int64, queries that saw at least one token.
        visible: `[layers, Hq]` int64, tokens they saw.
        kept: `[layers, Hq]` int64, tokens the selection kept, counted in the attention function.
        planned: `[layers, Hq]` int64, tokens the plan says: the sum over queries of min(n_keep, visible).
    """

    def __init__(self, n_keep: torch.Tensor, names: list[str]) -> None:
        """Args: the plan's budgets `[layers, Hq]` and the layers' names."""
        self._n_keep = n_keep
        self._names = names
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Forget all counts."""
        self.queries = torch.zeros_like(self._n_keep)
        self.visible = torch.zeros_like(self._n_keep)
        self.kept = torch.zeros_like(self._n_keep)
        self.planned = torch.zeros_like(self._n_keep)

    def count(self, layer: int, visible_rows: torch.Tensor, kept: torch.Tensor) -> None:
        """Add one attention call.

        Args:
            layer: The layer's place in the plan.
            visible_rows: `[B, T]` tokens each query sees.
            kept: `[Hq]` tokens kept, summed over batch and queries.
        """
        rows = visible_rows.reshape(-1).cpu()
        budgets = self._n_keep[layer]
        unique = torch.unique(budgets)
        capped = torch.minimum(rows[None, :], unique[:, None]).sum(-1)
        planned = capped[torch.searchsorted(unique, budgets)]
        with self._lock:
            self.queries[layer] += (rows > 0).sum()
            self.visible[layer] += rows.sum()
            self.kept[layer] += kept.cpu()
            self.planned[layer] += planned

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
        if not self.queries.any():
            return
        for layer, name in enumerate(self._names):
            if not self.queries[layer].any():
                raise GeosparseError(f"The planned layer {name} was not reached: the model did not run sparse there.")
            wrong = (self.kept[layer] != self.planned[layer]).nonzero().flatten().tolist()
            if wrong:
                head = wrong[0]
                raise GeosparseError(
                    f"Layer {name}, head {head} kept {int(self.kept[layer, head])} tokens where the plan says "
                    f"{int(self.planned[layer, head])}."
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

"""What the profile behind a plan saw of every head: the range of the mass that the plan keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..utils.files import is_count, is_number, require

DIGITS = 4


@dataclass(frozen=True, eq=False)
class Seen:
    """Kept mass M at the plan's budgets with exact selection, the mean over the sampled queries of a window.

    Attributes:
        length: Tokens of the windows.
        low: `[layers, Hq]` fp64, the least of all windows.
        high: `[layers, Hq]` fp64, the largest.
    """

    length: int
    low: torch.Tensor
    high: torch.Tensor

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, rounded to DIGITS."""
        tables = {"low": self.low, "high": self.high}
        rounded = {name: [[round(m, DIGITS) for m in row] for row in table.tolist()] for name, table in tables.items()}
        return {"length": self.length} | rounded

    @classmethod
    def from_json(cls, data: Any, layers: int, heads: int) -> Seen:
        """From a JSON object; raises GeosparseError where anything is missing or of the wrong type."""
        require(isinstance(data, dict) and data.keys() == {"length", "low", "high"}, "seen is not complete.")
        require(is_count(data["length"]), "seen has no length in tokens.")
        for name in ("low", "high"):
            rows = data[name]
            shaped = isinstance(rows, list) and len(rows) == layers
            shaped = shaped and all(isinstance(row, list) and len(row) == heads for row in rows)
            require(shaped and all(is_number(mass) for row in rows for mass in row), f"seen: {name} is misshapen.")
        low, high = (torch.tensor(data[name], dtype=torch.float64, device="cpu") for name in ("low", "high"))
        return cls(data["length"], low, high)

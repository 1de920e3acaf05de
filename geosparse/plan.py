"""The Plan artifact: how many tokens each head keeps, and what stands for the rest."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, cast

import torch

from .artifact import MAX_COUNT, damaged, is_count, read_json, require, write_json
from .errors import GeosparseError, did_you_mean
from .identity import ModelIdentity, identify, parse_identity
from .ops import TAILS, Tail, Tails
from .provenance import versions

SCHEMA = "geosparse.plan/1"
BEST: Literal["best"] = "best"
PlanTail = Tail | Literal["best"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Per-head budgets for one model.

    Attributes:
        n_keep: `[layers, Hq]` int64, tokens kept per query head, at `reference_length`.
        tail: What stands for the discarded tokens: "drop", "renormalize" or "centroid"; "best" when heads differ.
        head_tails: `[layers, Hq]` int64 places in `ops.TAILS`, where `tail` is "best"; else None.
        reference_length: Context length, tokens, at which the budgets were chosen.
        policy: How they were chosen.
        budget: What was asked for, e.g. `{"mean_keep": 32}`.
        model: The model they are for.
        calibration: Hash, windows and length of the text behind the profile; empty for a plan without one.
        predicted: What the planner expects, e.g. `{"damage": ...}`; empty for a plan without a profile.
        provenance: Versions of the libraries that made it.
    """

    n_keep: torch.Tensor
    tail: PlanTail
    reference_length: int
    policy: str
    budget: dict[str, float]
    model: ModelIdentity
    calibration: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=versions)
    head_tails: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check everything that does not need the model."""
        check_tail(self.tail)
        shape = (self.model.layers, self.model.heads)
        require((self.tail == BEST) == (self.head_tails is not None), f"head_tails go with the tail {BEST!r} only.")
        if self.head_tails is not None:
            known = tuple(self.head_tails.shape) == shape and self.head_tails.dtype == torch.int64
            require(known and int(self.head_tails.min()) >= 0, "head_tails do not fit the heads.")
            require(int(self.head_tails.max()) < len(TAILS), "head_tails do not fit the heads.")
        if tuple(self.n_keep.shape) != shape or self.n_keep.dtype != torch.int64:
            raise GeosparseError(f"A plan for this model needs whole numbers [layers, heads] = {list(shape)}.")
        if int(self.n_keep.min()) < 1 or int(self.n_keep.max()) > MAX_COUNT:
            found = f"{int(self.n_keep.min())} to {int(self.n_keep.max())}"
            raise GeosparseError(f"Every head keeps from 1 to {MAX_COUNT} tokens, found budgets of {found}.")
        if self.reference_length < 1:
            raise GeosparseError(f"The reference length is at least 1 token, found {self.reference_length}.")

    @classmethod
    def uniform(cls, model: Any, n_keep: int, tail: Tail = "renormalize", reference_length: int | None = None) -> Plan:
        """The same budget for every head: the baseline of every table.

        Args:
            model: The model it is for.
            n_keep: Tokens kept per head.
            tail: What stands for the rest.
            reference_length: Recorded only; by default the longest context of the model.
        """
        if isinstance(n_keep, bool) or not 1 <= n_keep <= MAX_COUNT or not float(n_keep).is_integer():
            raise GeosparseError(f"n_keep is a whole number of tokens >= 1, found {n_keep}.")
        identity = identify(model)
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None) or n_keep
        budgets = torch.full((identity.layers, identity.heads), int(n_keep), dtype=torch.int64)
        return cls(budgets, tail, int(reference_length or longest), "uniform", {"mean_keep": float(n_keep)}, identity)

    def tails_of(self, layer: int) -> Tails:
        """The tail of a layer's heads, as the attention paths take it."""
        if self.head_tails is None:
            return cast(Tail, self.tail)
        return [TAILS[place] for place in self.head_tails[layer].tolist()]

    @property
    def mean_keep(self) -> float:
        """Tokens kept per head, on average."""
        return float(self.n_keep.double().mean())

    def check(self, model: Any) -> None:
        """Raise GeosparseError unless `model` is the one that the plan was made for."""
        difference = self.model.difference(identify(model))
        if difference:
            raise GeosparseError(
                f"This plan is for another model, {self.model.name}: plan and model differ in {difference}; "
                "make one for this model with `geosparse profile` and `geosparse plan`."
            )

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object."""
        data = {item.name: getattr(self, item.name) for item in fields(self)}
        data |= {"schema": SCHEMA, "n_keep": self.n_keep.tolist(), "model": self.model.to_json()}
        if self.head_tails is None:
            del data["head_tails"]
        else:
            data["head_tails"] = [[TAILS[place] for place in row] for row in self.head_tails.tolist()]
        return data

    def save(self, path: Path | str) -> Path:
        """Write the plan as JSON, atomically."""
        return write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """Read a plan.

        Raises:
            GeosparseError: The file is missing, damaged, of another schema, or inconsistent.
        """
        path = Path(path)
        data = read_json(path, "plan")
        try:
            return cls.from_json(data)
        except GeosparseError as error:
            raise damaged(path, "plan", str(error)) from error

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """The plan in a JSON object; raises GeosparseError where anything is missing, unknown or of the wrong type."""
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise GeosparseError(f"expected schema {SCHEMA}, found {found!r}.")
        known = {item.name for item in fields(cls)}
        for key in data.keys() - known - {"schema"}:
            raise GeosparseError(f"the key {key!r} is not known.")
        for key in sorted(known - data.keys() - {"head_tails"}):
            raise GeosparseError(f"the key {key!r} is missing.")
        identity = parse_identity(data["model"])
        for key, kind in (("calibration", dict), ("predicted", dict), ("provenance", dict), ("budget", dict)):
            require(isinstance(data[key], kind), f"{key} is not an object.")
        require(isinstance(data["policy"], str) and isinstance(data["tail"], str), "policy and tail are words.")
        require(is_count(data["reference_length"]), "reference_length is not a whole number >= 1.")
        values = {key: data[key] for key in known - {"model", "n_keep", "head_tails"}}
        values["head_tails"] = _parse_tails(data["head_tails"], identity) if "head_tails" in data else None
        return cls(n_keep=_parse_budgets(data["n_keep"], identity), model=identity, **values)


def check_tail(tail: str) -> None:
    """Raise GeosparseError unless `tail` is one of `ops.TAILS` or "best"."""
    if tail not in (*TAILS, BEST):
        raise GeosparseError(f"Unknown tail {tail!r}: {did_you_mean(tail, (*TAILS, BEST))}")


def _is_table(rows: Any, identity: ModelIdentity) -> bool:
    shaped = isinstance(rows, list) and len(rows) == identity.layers
    return shaped and all(isinstance(row, list) and len(row) == identity.heads for row in rows)


def _parse_tails(rows: Any, identity: ModelIdentity) -> torch.Tensor:
    require(_is_table(rows, identity), "head_tails is misshapen.")
    require(all(word in TAILS for row in rows for word in row), "head_tails holds an unknown tail.")
    return torch.tensor([[TAILS.index(word) for word in row] for row in rows], dtype=torch.int64)


def _parse_budgets(rows: Any, identity: ModelIdentity) -> torch.Tensor:
    require(_is_table(rows, identity), "n_keep is misshapen.")
    require(all(is_count(n) for row in rows for n in row), "n_keep holds something that is not a whole number >= 1.")
    return torch.tensor(rows, dtype=torch.int64)

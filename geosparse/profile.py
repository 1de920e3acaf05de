"""The Profile artifact: what each head's token selection looked like on calibration text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from .artifact import damaged, dump_json, is_count, os_errors_as, parse_json, require, write_atomic
from .errors import GeosparseError
from .identity import ModelIdentity, parse_identity
from .ops import TAILS
from .provenance import versions

SCHEMA = "geosparse.profile/1"
MAX_FILE = 8 << 30

# Name -> what follows the leading windows dimension; "tails" is the order of ops.TAILS.
ARRAYS: dict[str, tuple[str, ...]] = {
    "mass": ("layers", "heads", "budgets"),
    "precision": ("layers", "heads", "budgets"),
    "recall": ("layers", "heads", "budgets"),
    "f1": ("layers", "heads", "budgets"),
    "margin": ("layers", "heads", "budgets"),
    "random_precision": ("layers", "heads", "budgets"),
    "random_recall": ("layers", "heads", "budgets"),
    "random_f1": ("layers", "heads", "budgets"),
    "random_margin": ("layers", "heads", "budgets"),
    "output_error": ("tails", "layers", "heads", "budgets"),
    "output_norm": ("layers", "heads"),
    "fisher": ("tails", "layers", "heads", "budgets"),
}


@dataclass(frozen=True, eq=False)
class Profile:
    """Per window, layer and query head: selection geometry and error curves over the budgets.

    Attributes:
        arrays: fp32, first dimension windows, each the mean over the sampled queries of that window. `mass`: kept
            mass M. `precision`, `recall`, `f1`, `margin` and their `random_` controls: NaN where no query sees more
            than N tokens; N = 1 is trivial. `output_error`: mean |W_O e|^2 per tail, `output_norm`: mean |W_O z|^2.
            `fisher`: mean (g . e)^2 per tail with g the gradient of the window's summed loss, nats^2.
        budgets: The N at which the arrays were measured, ascending.
        length: Tokens per window.
        queries: Sampled queries per window.
        limits: Per layer, the most tokens a query can see (the sliding window, else `length`).
        model: The model that was profiled.
        calibration: Hash, windows and length of the text.
        nll: Mean dense loss on the windows, nats per token.
        config: The ProfileConfig as JSON.
        provenance: Library versions.
    """

    arrays: dict[str, torch.Tensor]
    budgets: tuple[int, ...]
    length: int
    queries: int
    limits: tuple[int, ...]
    model: ModelIdentity
    calibration: dict[str, Any]
    nll: float
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=versions)

    def __post_init__(self) -> None:
        """Check names, shapes and types of the arrays against the rest."""
        require(
            self.arrays.keys() == ARRAYS.keys(), f"the arrays {sorted(ARRAYS.keys() ^ self.arrays.keys())} do not fit."
        )
        for name, array in self.arrays.items():
            require(tuple(array.shape) == self.shape_of(name), f"the array {name} has the shape {list(array.shape)}.")
            require(array.dtype == torch.float32, f"the array {name} is not float32.")
        for name in ("mass", "output_error", "output_norm", "fisher"):
            require(bool(torch.isfinite(self.arrays[name]).all()), f"the array {name} holds NaN or infinity.")

    @property
    def windows(self) -> int:
        """How many windows were profiled."""
        return int(self.calibration["windows"])

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape that the array `name` must have."""
        sizes = {
            "tails": len(TAILS),
            "layers": self.model.layers,
            "heads": self.model.heads,
            "budgets": len(self.budgets),
        }
        return (self.windows, *(sizes[dimension] for dimension in ARRAYS[name]))

    def mean(self, name: str) -> torch.Tensor:
        """The array `name` averaged over windows, fp64, without the leading dimension; NaN windows are left out."""
        return self.arrays[name].double().nanmean(0)

    def fisher(self, tail: str) -> torch.Tensor:
        """Mean (g . e)^2, `[layers, Hq, budgets]` fp64; the tail "best" is the least of all at each budget."""
        return _of_tail(self.mean("fisher"), tail)

    def relative_output_error(self, tail: str) -> torch.Tensor:
        """Mean |W_O e|^2 over mean |W_O z|^2, `[layers, Hq, budgets]` fp64; for "best" likewise."""
        norm = self.mean("output_norm").unsqueeze(-1).clamp_min(torch.finfo(torch.float32).tiny)
        return _of_tail(self.mean("output_error"), tail) / norm

    def check(self, model: Any) -> None:
        """Raise GeosparseError unless `model` is the one that was profiled."""
        from .identity import identify

        difference = self.model.difference(identify(model))
        if difference:
            raise GeosparseError(
                f"This profile is of another model, {self.model.name}: profile and model differ in {difference}; "
                "make one of this model with `geosparse profile`."
            )

    def metadata(self) -> dict[str, Any]:
        """Everything but the arrays, as a JSON object."""
        data = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "arrays"}
        return data | {"schema": SCHEMA, "model": self.model.to_json(), "tails": list(TAILS)}

    def save(self, path: Path | str) -> Path:
        """Write the profile as one `.safetensors` file, atomically."""
        from safetensors.torch import save

        blob = save(
            {name: self.arrays[name].contiguous() for name in ARRAYS}, {"geosparse": dump_json(self.metadata())}
        )
        return write_atomic(path, lambda temporary: temporary.write_bytes(blob))

    @classmethod
    def load(cls, path: Path | str) -> Profile:
        """Read a profile.

        Raises:
            GeosparseError: The file is missing, damaged, of another schema, or inconsistent.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        with os_errors_as("read", path):
            size = path.stat().st_size
            path.open("rb").close()
        if size > MAX_FILE:
            raise GeosparseError(f"{path} is not a profile: {size} bytes is more than a profile can have.")
        try:
            with safe_open(path, framework="pt") as file:
                data = _parse_metadata(file.metadata())
                names = set(file.keys())
                require(names == ARRAYS.keys(), "its arrays are not those of a profile.")
                return cls(arrays={name: file.get_tensor(name) for name in ARRAYS}, **data)
        except (GeosparseError, SafetensorError, OSError, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, GeosparseError) else "it does not parse as safetensors"
            raise damaged(path, "profile", reason) from error


def _of_tail(arrays: torch.Tensor, tail: str) -> torch.Tensor:
    """`arrays` `[tails, ...]` at one of TAILS, or the least over all of them for "best"."""
    return arrays.amin(0) if tail == "best" else arrays[list[str](TAILS).index(tail)]


def _parse_metadata(header: dict[str, str] | None) -> dict[str, Any]:
    data = parse_json((header or {}).get("geosparse", "null"))
    require(isinstance(data, dict) and data.get("schema") == SCHEMA, f"its schema is not {SCHEMA}.")
    require(data.get("tails") == list(TAILS), "its tails are not known.")
    known = {item.name for item in fields(Profile)} - {"arrays"}
    require(data.keys() == known | {"schema", "tails"}, "its metadata is not complete.")
    for key in ("calibration", "config", "provenance"):
        require(isinstance(data[key], dict), f"{key} is not an object.")
    require(is_count(data["calibration"].get("windows")), "the number of windows is not a whole number.")
    require(is_count(data["length"]) and is_count(data["queries"]), "length and queries are whole numbers.")
    require(isinstance(data["nll"], float), "nll is not a number.")
    for key in ("budgets", "limits"):
        require(isinstance(data[key], list) and all(map(is_count, data[key])), f"{key} is not a list of whole numbers.")
    budgets = data["budgets"]
    require(bool(budgets) and budgets == sorted(set(budgets)), "budgets do not ascend.")
    identity = parse_identity(data["model"])
    require(len(data["limits"]) == identity.layers, "limits do not fit the layers.")
    values = {key: data[key] for key in known}
    return values | {"model": identity, "budgets": tuple(budgets), "limits": tuple(data["limits"])}

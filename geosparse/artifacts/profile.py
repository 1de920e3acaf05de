"""The Profile artifact: what each head's token selection looked like on calibration text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import GeosparseError, NotInstalledError, did_you_mean
from ..geometry.fits import Fits, fit
from ..geometry.moments import Moments, shape_of
from ..geometry.regimes import SIGNATURES, Regimes, classify, typical
from ..geometry.separation import DISTANCES
from ..hf.identity import ModelIdentity, parse_identity
from ..ops import TAILS, expand_tail
from ..ops.selectors import EXACT, check_installed
from ..utils.files import (
    check_header,
    check_readable,
    damaged,
    dump_json,
    is_count,
    parse_json,
    require,
    write_atomic,
)
from ..utils.provenance import versions
from .interplay import Interplay

SCHEMA = "geosparse.profile/4"
# What goes before the names of moments in the file; a profile made before there were any has none.
MOMENTS = "moments."
INTERPLAY = "interplay."
MAX_FILE = 8 << 30
# The fields that are tensors in the file; the others are its metadata.
TENSORS = {"arrays", "moments", "interplay"}
MAX_HEADER = 4 << 20
"""Bytes of names, shapes and metadata; real ones have some ten thousand."""
MAX_LENGTH = 1 << 24
"""Tokens; no context is that long."""

# What the geometry was measured at: the mean over sampled queries, and the last query of the window.
PLACES = ("sampled", "final")
# How the N tokens are ranked; "random" is the control, each random set around its own centre.
RANKINGS = ("attention", "contribution", "random")
METRICS = ("precision", "recall", "f1", "margin", "inversions")

# Dimensions whose entries have names; selectors, which differ from profile to profile, are a field.
DIMENSIONS: dict[str, list[str]] = {
    "tails": list(TAILS),
    "places": list(PLACES),
    "distances": list(DISTANCES),
    "rankings": list(RANKINGS),
    "signatures": list(SIGNATURES),
}

_GEOMETRY = ("places", "distances", "rankings", "layers", "heads", "budgets")
# Name -> what follows the leading windows dimension; named dimensions are in the order of `DIMENSIONS`.
ARRAYS: dict[str, tuple[str, ...]] = {
    "mass": ("selectors", "layers", "heads", "budgets"),
    "output_error": ("selectors", "tails", "layers", "heads", "budgets"),
    "output_norm": ("layers", "heads"),
    "fisher": ("selectors", "tails", "layers", "heads", "budgets"),
    "entropy": ("layers", "heads"),
    "signatures": ("layers", "heads", "signatures"),
} | dict.fromkeys(METRICS, _GEOMETRY)


@dataclass(frozen=True, eq=False)
class Profile:
    """Per window, layer and query head: selection geometry and error curves over the budgets.

    A profile may hold windows of several lengths. What it says in numbers (`mean`, `kept_mass`, `fisher`, ...) is
    about its longest windows; `at(length)` is the same profile with the windows of one length only.

    Attributes:
        arrays: fp32, first dimension windows, the others as in `ARRAYS`, each the mean over the sampled queries of that
            window. `mass`: kept mass M. `precision`, `recall`, `f1`, `margin`, `inversions`: NaN where no query sees
            more than N tokens; Euclidean, N = 1 is trivial. `output_error`: mean |W_O e|^2 per selector and tail,
            `output_norm`: mean |W_O z|^2. `fisher`: mean (g . e)^2 with g the gradient of the window's summed loss,
            nats^2. `entropy`: mean entropy of the attention weights, nats. `signatures`: those of `regimes.SIGNATURES`,
            `f_excess` NaN. A window of l tokens keeps everything at N >= l: mass 1, no error.
        budgets: The N at which the arrays were measured, ascending.
        lengths: Tokens of each window, ascending.
        queries: Sampled queries per window; a few less where two draws coincide.
        limits: Per layer, the most tokens a query can see (the sliding window, else `length`).
        model: The model that was profiled.
        calibration: Hash, windows and lengths of the text.
        nlls: Mean dense loss of each window, nats per token.
        selectors: The names in `SELECTORS` whose mass and errors were measured.
        config: The ProfileConfig as JSON.
        provenance: Library versions.
        moments: `[windows, layers, Hq, ...]` the sums from which the assumptions are fitted, with the lag bins of the
            longest windows; None in profiles made before there were any.
        interplay: What heads' errors do to each other under a plan; None without a second pass.
    """

    arrays: dict[str, torch.Tensor]
    budgets: tuple[int, ...]
    lengths: tuple[int, ...]
    queries: int
    limits: tuple[int, ...]
    model: ModelIdentity
    calibration: dict[str, Any]
    nlls: tuple[float, ...]
    selectors: tuple[str, ...] = (EXACT,)
    config: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=versions)
    moments: Moments | None = None
    interplay: Interplay | None = None

    def __post_init__(self) -> None:
        """Check names, shapes and types of the arrays against the rest."""
        require(len(self.lengths) == len(self.nlls), "lengths and nlls are not of the same number of windows.")
        require(
            self.arrays.keys() == ARRAYS.keys(), f"the arrays {sorted(ARRAYS.keys() ^ self.arrays.keys())} do not fit."
        )
        later = self._named_moments() | self._named_interplay()
        for name, array in (self.arrays | later).items():
            kind = "float64" if name in later else "float32"
            require(tuple(array.shape) == self.shape_of(name), f"the array {name} has the shape {list(array.shape)}.")
            require(array.dtype == getattr(torch, kind), f"the array {name} is not {kind}.")
        for name in ("mass", "output_error", "output_norm", "fisher", "entropy"):
            require(bool(torch.isfinite(self.arrays[name]).all()), f"the array {name} {self._fault(name)}")
        for name, array in later.items():
            require(bool(torch.isfinite(array).all()), f"the array {name} holds NaN or infinity.")
        if self.moments is not None:
            tokens = torch.tensor(self.lengths, dtype=torch.float64, device="cpu")[:, None, None]
            sound = bool((self.moments.windows == 1).all()) and bool((self.moments.tokens == tokens).all())
            require(sound, "its moments are not of its windows.")

    @property
    def windows(self) -> int:
        """How many windows were profiled, of all lengths."""
        return len(self.lengths)

    @property
    def length(self) -> int:
        """Tokens of the longest windows."""
        return max(self.lengths)

    @property
    def distinct_lengths(self) -> tuple[int, ...]:
        """The lengths of windows there are, ascending."""
        return tuple(sorted(set(self.lengths)))

    @property
    def nll(self) -> float:
        """Mean dense loss on the longest windows, nats per token."""
        longest = [nll for nll, length in zip(self.nlls, self.lengths, strict=True) if length == self.length]
        return sum(longest) / len(longest)

    def at(self, length: int) -> Profile:
        """The profile with the windows of `length` tokens only; raises GeosparseError where there are none."""
        rows = [row for row, tokens in enumerate(self.lengths) if tokens == length]
        if not rows:
            found = ", ".join(map(str, self.distinct_lengths))
            raise GeosparseError(
                f"No windows of {length} tokens in the profile, only of {found}: ask for one of those."
            )
        return replace(
            self,
            arrays={name: array[rows] for name, array in self.arrays.items()},
            lengths=tuple(length for _ in rows),
            nlls=tuple(self.nlls[row] for row in rows),
            limits=tuple(min(limit, length) for limit in self.limits),
            calibration=self.calibration | {"windows": len(rows), "lengths": [length]},
            moments=None if self.moments is None else self.moments.of_windows(rows, length),
        )

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape that the array `name` must have."""
        return _shapes(self.model, vars(self))[name]

    def longest(self, name: str) -> torch.Tensor:
        """The array `name` of the longest windows, fp64, with its windows dimension."""
        rows = torch.tensor([length == self.length for length in self.lengths], dtype=torch.bool, device="cpu")
        return self.arrays[name][rows].double()

    def mean(self, name: str) -> torch.Tensor:
        """The array `name` averaged over the longest windows, fp64, without that dimension; NaNs are left out."""
        return self.longest(name).nanmean(0)

    def kept_mass(self, selector: str = EXACT) -> torch.Tensor:
        """Mean kept mass M, `[layers, Hq, budgets]` fp64."""
        return self.mean("mass")[self._place(selector)]

    def fisher(self, tail: str, selector: str = EXACT) -> torch.Tensor:
        """Mean (g . e)^2, `[layers, Hq, budgets]` fp64; of the names in `ops.TAIL_FAMILIES` the least of theirs."""
        return _of_tail(self.mean("fisher")[self._place(selector)], tail)

    def price(self, tail: str, selector: str = EXACT) -> torch.Tensor:
        """`fisher` as a head's error is felt among those of all other heads, where that was measured."""
        prices = self.mean("fisher")[self._place(selector)]
        return _of_tail(prices if self.interplay is None else prices * self.interplay.factors, tail)

    def relative_output_error(self, tail: str, selector: str = EXACT) -> torch.Tensor:
        """Mean |W_O e|^2 over mean |W_O z|^2, `[layers, Hq, budgets]` fp64; tails as in `fisher`."""
        norm = self.mean("output_norm").unsqueeze(-1).clamp_min(torch.finfo(torch.float32).tiny)
        return _of_tail(self.mean("output_error")[self._place(selector)], tail) / norm

    def geometry(
        self, metric: str, ranking: str = "attention", distance: str = "euclidean", place: str = "sampled"
    ) -> torch.Tensor:
        """A metric of each of the longest windows, `[windows, layers, Hq, budgets]` fp64.

        Args:
            metric: One of `METRICS`.
            ranking: One of `RANKINGS`.
            distance: One of `geometry.DISTANCES`.
            place: One of `PLACES`.
        """
        for word, known in ((metric, METRICS), (ranking, RANKINGS), (distance, DISTANCES), (place, PLACES)):
            if word not in known:
                raise GeosparseError(f"The geometry knows no {word!r}: {did_you_mean(word, known)}")
        array = self.longest(metric)
        return array[:, PLACES.index(place), list[str](DISTANCES).index(distance), RANKINGS.index(ranking)]

    def excess_f1(self, distance: str = "euclidean", place: str = "sampled") -> torch.Tensor:
        """F of the attention ranking minus F of random sets, `[windows, layers, Hq, budgets]` fp64."""
        chosen = self.geometry("f1", "attention", distance, place)
        return chosen - self.geometry("f1", "random", distance, place)

    def regimes(self) -> Regimes:
        """The regime of each head `[layers, Hq]`, by the typical signatures of the longest windows."""
        return classify(typical(self.longest("signatures")))

    def fits(self) -> Fits:
        """The paper's assumptions A1 to A3 fitted to each head `[layers, Hq]`, from the longest windows.

        Raises:
            GeosparseError: The profile has no moments, or its windows are too short.
        """
        if self.moments is None:
            raise GeosparseError("The profile is older than the fits: make it again with `geosparse profile`.")
        rows = [row for row, length in enumerate(self.lengths) if length == self.length]
        return fit(self.moments.of_windows(rows, self.length).summed())

    def _fault(self, name: str) -> str:
        """Where an array is not finite."""
        first = (~torch.isfinite(self.arrays[name])).nonzero()
        if not len(first):
            return ""
        place = dict(zip(("windows", *ARRAYS[name]), first[0].tolist(), strict=True))
        return f"holds NaN or infinity, first at layer {place['layers']}, head {place['heads']}."

    def _named_moments(self) -> dict[str, torch.Tensor]:
        """The moments by their names in the file."""
        if self.moments is None:
            return {}
        return {MOMENTS + item.name: getattr(self.moments, item.name) for item in fields(self.moments)}

    def _named_interplay(self) -> dict[str, torch.Tensor]:
        """The interplay by its names in the file."""
        if self.interplay is None:
            return {}
        return {INTERPLAY + item.name: getattr(self.interplay, item.name) for item in fields(self.interplay)}

    def _place(self, selector: str) -> int:
        if selector not in self.selectors:
            raise GeosparseError(
                f"The profile has no selector {selector!r}, but {', '.join(self.selectors)}: profile again with it."
            )
        return self.selectors.index(selector)

    def check(self, model: Any) -> None:
        """Raise GeosparseError unless `model` is the one that was profiled."""
        from ..hf.identity import identify

        difference = self.model.difference(identify(model))
        if difference:
            raise GeosparseError(
                f"This profile is of another model, {self.model.name}: profile and model differ in {difference}; "
                "make one of this model with `geosparse profile`."
            )

    def metadata(self) -> dict[str, Any]:
        """Everything but the arrays, as a JSON object."""
        data = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in TENSORS}
        return data | {"schema": SCHEMA, "model": self.model.to_json(), "dimensions": DIMENSIONS}

    def save(self, path: Path | str) -> Path:
        """Write the profile as one `.safetensors` file, atomically."""
        from safetensors.torch import save

        tensors = {name: self.arrays[name] for name in ARRAYS} | self._named_moments() | self._named_interplay()
        blob = save(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, {"geosparse": dump_json(self.metadata())}
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
        size = check_readable(path)
        if size > MAX_FILE:
            raise GeosparseError(f"{path} is not a profile: {size} bytes is more than a profile can have.")
        try:
            check_header(path, MAX_HEADER)
            with safe_open(path, framework="pt") as file:
                data = _parse_metadata(file.metadata())
                names = set(file.keys())
                expected = _shapes(data["model"], data)
                for name in names & expected.keys():
                    shape = tuple(file.get_slice(name).get_shape())
                    require(shape == expected[name], f"the array {name} has the shape {list(shape)}.")
                moments = _optional(file, names, MOMENTS, Moments)
                interplay = _optional(file, names, INTERPLAY, Interplay)
                require(names == ARRAYS.keys(), "its arrays are not those of a profile.")
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
                return cls(arrays=arrays, moments=moments, interplay=interplay, **data)
        except NotInstalledError as error:
            raise GeosparseError(f"{path} cannot be used here: {error}") from error
        except (GeosparseError, SafetensorError, OSError, ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, GeosparseError) else "it does not parse as safetensors"
            raise damaged(path, "profile", reason) from error


def _optional(file: Any, names: set[str], prefix: str, kind: type[Any]) -> Any:
    """A dataclass of tensors that the file holds under `prefix`, or None; what it takes leaves `names`."""
    wanted = {prefix + item.name for item in fields(kind)}
    if not wanted <= names:
        return None
    names -= wanted
    return kind(**{name.removeprefix(prefix): file.get_tensor(name) for name in wanted})


def _shapes(model: ModelIdentity, lists: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the file; `lists` holds lengths, selectors and budgets."""
    sizes: dict[str, int] = {name: len(words) for name, words in DIMENSIONS.items()} | {
        "selectors": len(lists["selectors"]),
        "layers": model.layers,
        "heads": model.heads,
        "budgets": len(lists["budgets"]),
    }
    windows, longest = len(lists["lengths"]), max(lists["lengths"])
    arrays = {name: (windows, *(sizes[dimension] for dimension in names)) for name, names in ARRAYS.items()}
    heads = (windows, model.layers, model.heads)
    moments = {MOMENTS + item.name: (*heads, *shape_of(item.name, longest)) for item in fields(Moments)}
    prices = {INTERPLAY + item.name: arrays["fisher"][2:] for item in fields(Interplay)}
    return arrays | moments | prices


def _of_tail(arrays: torch.Tensor, tail: str) -> torch.Tensor:
    """`arrays` `[tails, ...]` at one of TAILS, or the least over those that a name in TAIL_FAMILIES stands for."""
    return arrays[[TAILS.index(word) for word in expand_tail(tail)]].amin(0)


def _parse_metadata(header: dict[str, str] | None) -> dict[str, Any]:
    data = parse_json((header or {}).get("geosparse", "null"))
    require(isinstance(data, dict) and data.get("schema") == SCHEMA, f"its schema is not {SCHEMA}.")
    require(data.get("dimensions") == DIMENSIONS, "its tails, rankings or distances are not known.")
    known = {item.name for item in fields(Profile)} - TENSORS
    require(data.keys() == known | {"schema", "dimensions"}, "its metadata is not complete.")
    for key in ("calibration", "config", "provenance"):
        require(isinstance(data[key], dict), f"{key} is not an object.")
    require(is_count(data["queries"]), "queries is not a whole number.")
    for key in ("budgets", "limits", "lengths"):
        require(isinstance(data[key], list) and all(map(is_count, data[key])), f"{key} is not a list of whole numbers.")
    budgets, lengths = data["budgets"], data["lengths"]
    require(bool(budgets) and budgets == sorted(set(budgets)), "budgets do not ascend.")
    require(bool(lengths) and lengths == sorted(lengths), "lengths do not ascend.")
    require(lengths[-1] <= MAX_LENGTH, f"a length of {lengths[-1]} tokens is more than any context.")
    nlls = data["nlls"]
    require(isinstance(nlls, list) and all(isinstance(nll, float) for nll in nlls), "nlls is not a list of numbers.")
    names = data["selectors"]
    require(isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names), "no selectors.")
    require(len(set(names)) == len(names), "its selectors are not distinct.")
    for name in names:
        check_installed(name)
    identity = parse_identity(data["model"])
    limits = data["limits"]
    require(len(limits) == identity.layers and max(limits) <= lengths[-1], "limits do not fit the layers and lengths.")
    lists = {key: tuple(data[key]) for key in ("budgets", "limits", "lengths", "nlls", "selectors")}
    return {key: data[key] for key in known} | lists | {"model": identity}

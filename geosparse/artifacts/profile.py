"""The Profile artifact: what each head's token selection looked like on calibration text."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import GeosparseError, NotInstalledError, did_you_mean
from ..geometry.fits import Fits, fit
from ..geometry.moments import Moments
from ..geometry.regimes import Regimes, classify, typical
from ..geometry.separation import DISTANCES
from ..hf.identity import ModelIdentity
from ..ops import TAILS, expand_tail
from ..ops.selectors import EXACT
from ..utils.files import check_header, check_readable, damaged, dump_json, require, write_atomic
from ..utils.provenance import versions
from .interplay import Interplay
from .profile_file import (
    ARRAYS,
    BUILT_IN,
    DIMENSIONS,
    INTERPLAY,
    MAX_FILE,
    MAX_HEADER,
    METRICS,
    MOMENTS,
    OWN_KIND,
    PLACES,
    RANKINGS,
    SCHEMA,
    TENSORS,
    parse_metadata,
    shapes,
)
from .tail_moments import TAIL_ARRAYS, TailMoments, unpack

__all__ = [
    "ARRAYS",
    "BUILT_IN",
    "DIMENSIONS",
    "MAX_HEADER",
    "METRICS",
    "MOMENTS",
    "OWN_KIND",
    "PLACES",
    "RANKINGS",
    "Profile",
]


@dataclass(frozen=True, eq=False)
class Profile:
    """Per window, layer and query head: selection geometry and error curves over the budgets.

    A profile may hold windows of several lengths, and of several kinds of text: those that were given, and built-in
    ones beside them. What it says in numbers (`mean`, `kept_mass`, `fisher`, ...) is about the longest windows of the
    text that was given; `at(length)` and `of_kinds(kind)` are the same profile with a part of its windows.

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
        calibration: Hash, windows and lengths of the text; `kinds`, one word per window, where there are several.
        nlls: Mean dense loss of each window, nats per token.
        selectors: The names in `SELECTORS` whose mass and errors were measured.
        config: The ProfileConfig as JSON.
        provenance: Library versions.
        moments: `[windows, layers, Hq, ...]` the sums from which the assumptions are fitted, with the lag bins of the
            longest windows; None in profiles made before there were any.
        tail_moments: What tails with shares of their own are fitted to; None in profiles made before there were any.
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
    tail_moments: TailMoments | None = None

    def __post_init__(self) -> None:
        """Check names, shapes and types of the arrays against the rest."""
        require(len(self.lengths) == len(self.nlls), "lengths and nlls are not of the same number of windows.")
        kinds = self.calibration.get("kinds", [OWN_KIND] * len(self.lengths))
        sound = isinstance(kinds, list) and len(kinds) == len(self.lengths) and all(isinstance(k, str) for k in kinds)
        require(sound, "its kinds of text are not one word per window.")
        require(
            self.arrays.keys() == ARRAYS.keys(), f"the arrays {sorted(ARRAYS.keys() ^ self.arrays.keys())} do not fit."
        )
        later = self._named_moments() | self._named_interplay() | self._named_tail_moments()
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
        longest = [self.nlls[row] for row in self._longest_rows]
        return sum(longest) / len(longest)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of text of each window; those that are built in begin with `BUILT_IN`."""
        return tuple(self.calibration.get("kinds", [OWN_KIND] * self.windows))

    def at(self, length: int) -> Profile:
        """The profile with the windows of `length` tokens only; raises GeosparseError where there are none."""
        rows = [row for row, tokens in enumerate(self.lengths) if tokens == length]
        if not rows:
            lengths = ", ".join(map(str, self.distinct_lengths))
            raise GeosparseError(
                f"No windows of {length} tokens in the profile, only of {lengths}: ask for one of those."
            )
        return self._with(rows)

    def of_kinds(self, *kinds: str) -> Profile:
        """The profile with the windows of some kinds of text only; raises GeosparseError where one has no window."""
        for kind in kinds:
            if kind not in self.kinds:
                raise GeosparseError(f"No windows of {kind!r} in the profile: {did_you_mean(kind, set(self.kinds))}")
        return self._with([row for row, found in enumerate(self.kinds) if found in kinds])

    def own(self) -> Profile:
        """The profile with the windows of the text that was given; of all kinds where only built-in ones are left."""
        rows = self._own_rows
        return self if len(rows) == self.windows else self._with(rows)

    def _with(self, rows: list[int]) -> Profile:
        """The profile with some of its windows."""
        lengths = tuple(self.lengths[row] for row in rows)
        calibration = self.calibration | {"windows": len(rows), "lengths": sorted(set(lengths))}
        if "kinds" in calibration:
            calibration["kinds"] = [self.kinds[row] for row in rows]
        return replace(
            self,
            arrays={name: array[rows] for name, array in self.arrays.items()},
            lengths=lengths,
            nlls=tuple(self.nlls[row] for row in rows),
            limits=tuple(min(limit, max(lengths)) for limit in self.limits),
            calibration=calibration,
            moments=None if self.moments is None else self.moments.of_windows(rows, max(lengths)),
            tail_moments=None if self.tail_moments is None else self.tail_moments.of_windows(rows),
        )

    @property
    def _own_rows(self) -> list[int]:
        rows = [row for row, kind in enumerate(self.kinds) if not kind.startswith(BUILT_IN)]
        return rows or list(range(self.windows))

    @property
    def _longest_rows(self) -> list[int]:
        """The longest windows of the text that was given."""
        longest = max(self.lengths[row] for row in self._own_rows)
        return [row for row in self._own_rows if self.lengths[row] == longest]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """The shape that the array `name` must have."""
        return shapes(self.model, vars(self))[name]

    def longest(self, name: str) -> torch.Tensor:
        """The array `name` of the longest windows, fp64, with its windows dimension."""
        return self.arrays[name][self._longest_rows].double()

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
        for name, known in ((metric, METRICS), (ranking, RANKINGS), (distance, DISTANCES), (place, PLACES)):
            if name not in known:
                raise GeosparseError(f"The geometry knows no {name!r}: {did_you_mean(name, known)}")
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
        return fit(self.moments.of_windows(self._longest_rows, self.length).summed())

    def _fault(self, name: str) -> str:
        """Where an array is not finite."""
        first = (~torch.isfinite(self.arrays[name])).nonzero()
        if not len(first):
            return ""
        position = dict(zip(("windows", *ARRAYS[name]), first[0].tolist(), strict=True))
        return f"holds NaN or infinity, first at layer {position['layers']}, head {position['heads']}."

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

    def _named_tail_moments(self) -> dict[str, torch.Tensor]:
        """The moments of tails by their names in the file."""
        if self.tail_moments is None:
            return {}
        return dict(zip(TAIL_ARRAYS, (self.tail_moments.fisher, self.tail_moments.output), strict=True))

    def tail_products(self, selector: str = EXACT) -> tuple[torch.Tensor, torch.Tensor]:
        """Means over the longest windows of the `TailMoments`, `[layers, Hq, budgets, PARTS, PARTS]` each.

        Raises:
            GeosparseError: The profile is older than those.
        """
        if self.tail_moments is None:
            raise GeosparseError(
                "The profile has nothing to fit tails to: make it again with `geosparse profile`, or plan another tail."
            )
        place, rows = self._place(selector), self._longest_rows
        fisher, output = (part[rows][:, place].mean(0) for part in (self.tail_moments.fisher, self.tail_moments.output))
        return unpack(fisher), unpack(output)

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
        tensors |= self._named_tail_moments()
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
                data = parse_metadata(file.metadata(), {item.name for item in fields(cls)})
                names = set(file.keys())
                expected = shapes(data["model"], data)
                for name in names & expected.keys():
                    shape = tuple(file.get_slice(name).get_shape())
                    require(shape == expected[name], f"the array {name} has the shape {list(shape)}.")
                moments = _optional(file, names, MOMENTS, Moments)
                interplay = _optional(file, names, INTERPLAY, Interplay)
                tails = [file.get_tensor(name) for name in TAIL_ARRAYS] if names >= set(TAIL_ARRAYS) else None
                names -= set(TAIL_ARRAYS) if tails else set()
                require(names == ARRAYS.keys(), "its arrays are not those of a profile.")
                arrays = {name: file.get_tensor(name) for name in ARRAYS}
                fitted = None if tails is None else TailMoments(*tails)
                return cls(arrays=arrays, moments=moments, interplay=interplay, tail_moments=fitted, **data)
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


def _of_tail(arrays: torch.Tensor, tail: str) -> torch.Tensor:
    """`arrays` `[tails, ...]` at one of TAILS, or the least over those that a name in TAIL_FAMILIES stands for."""
    return arrays[[TAILS.index(name) for name in expand_tail(tail)]].amin(0)

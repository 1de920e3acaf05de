"""The Plan artifact: how many tokens each head keeps, and what stands for the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ..errors import GeosparseError, NotInstalledError
from ..hf.identity import ModelIdentity, identify, parse_identity
from ..ops import SELECTORS, TAIL_FAMILIES, TAILS, Budgets, Selector, Selectors, Tail, Tails, check_tail
from ..ops.selectors import EXACT, check_installed, fits, shareable
from ..ops.spec import per_head
from ..ops.tails import FITTED, TailShares
from ..utils.bounds import as_whole, check_whole
from ..utils.files import MAX_COUNT, damaged, dump_json, is_count, is_number, read_json, require, write_json
from ..utils.provenance import versions
from .seen import Seen

SCHEMA = "geosparse.plan/1"
FITTED_SCHEMA = "geosparse.plan/2"
"""Of plans with a fitted tail, which an older geosparse refuses by it; all others stay readable there."""
PlanTail = Tail  # or a name in ops.TAIL_FAMILIES
MAX_GROWTH = 4.0
MAX_SHARE = 100.0
MAX_FILE = 8 << 20
VERIFIED = ("tolerance", "increase", "limit", "windows", "failed")
"""The numbers that every verification has."""
# Written only where they say something; a file without them is an older plan.
_PER_HEAD = ("head_tails", "tail_shares", "head_selectors", "growth")
OPTIONAL = {*_PER_HEAD, "share_kv", "selector", "verified", "kinds", "seen"}
DECISIVE = ("n_keep", "tail", "selector", *_PER_HEAD, "share_kv", "reference_length")
"""What a model sees of a plan; all else says where it comes from."""


@dataclass(frozen=True, eq=False)
class Plan:
    """Per-head budgets for one model.

    Attributes:
        n_keep: `[layers, Hq]` int64, tokens kept per query head at up to `reference_length` visible tokens.
        tail: What stands for the discarded tokens: one of `ops.TAILS`; "best", "blend" or "fitted" when heads differ.
        head_tails: `[layers, Hq]` int64 places in `ops.TAILS`, where `tail` is one of `ops.TAIL_FAMILIES`; else None.
        reference_length: Context length, tokens, at which the budgets were chosen.
        policy: How they were chosen.
        budget: What was asked for, e.g. `{"mean_keep": 32}`.
        model: The model they are for.
        calibration: Hash, windows and length of the text behind the profile; empty for a plan without one.
        predicted: What the planner expects, e.g. `{"damage": ...}`; empty for a plan without a profile.
        provenance: Versions of the libraries that made it.
        selector: How the tokens are found, a word of `ops.SELECTORS`; where heads differ, that of most.
        head_selectors: `[layers, Hq]` int64 places in `ops.SELECTORS`, where heads differ; else None.
        growth: `[layers, Hq]` fp64 exponents: beyond `reference_length` visible tokens v a head keeps
            n_keep * (v / reference_length)^growth; None: n_keep at every length.
        share_kv: The query heads of one KV group select the same tokens; their budgets are then equal.
        verified: What was measured on text that the plan was not made from (`geosparse.measure.tolerance`); empty for
            a plan that was not verified.
        kinds: The kinds of text that its profile saw, and the predicted excess on each, nats per token: half the summed
            (g . e)^2; empty for a plan without a profile.
        tail_shares: `[layers, Hq, 4]` fp64, the shares of each head's tail in the order of `ops.tails.TailShares`,
            where `tail` is "fitted"; else None.
        seen: The range of each head's kept mass over the windows of that profile; None for a plan without one.
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
    selector: Selector = EXACT
    head_selectors: torch.Tensor | None = None
    growth: torch.Tensor | None = None
    share_kv: bool = False
    verified: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, float] = field(default_factory=dict)
    seen: Seen | None = None
    tail_shares: torch.Tensor | None = None

    def __post_init__(self) -> None:
        """Check everything that does not need the model."""
        check_tail(self.tail)
        shape = (self.model.layers, self.model.heads)
        families = " and ".join(map(repr, TAIL_FAMILIES))
        differ = self.tail in TAIL_FAMILIES
        require(differ == (self.head_tails is not None), f"head_tails go with the tails {families} only.")
        require(_are_indices(self.head_tails, shape, len(TAILS)), "head_tails do not fit the heads.")
        require(
            (self.tail == FITTED) == (self.tail_shares is not None), f"tail_shares go with the tail {FITTED!r} only."
        )
        if self.tail_shares is not None:
            sound = tuple(self.tail_shares.shape) == (*shape, len(TailShares._fields))
            sound = sound and self.tail_shares.dtype == torch.float64
            sound = sound and bool((self.tail_shares.abs() <= MAX_SHARE).all())
            require(sound, f"tail_shares holds four numbers of at most {MAX_SHARE:g} per head.")
        SELECTORS.check(self.selector)
        require(_are_indices(self.head_selectors, shape, len(SELECTORS.names)), "head_selectors do not fit the heads.")
        if tuple(self.n_keep.shape) != shape or self.n_keep.dtype != torch.int64:
            raise GeosparseError(f"A plan for this model needs whole numbers [layers, heads] = {list(shape)}.")
        if int(self.n_keep.min()) < 1 or int(self.n_keep.max()) > MAX_COUNT:
            bounds = f"{int(self.n_keep.min())} to {int(self.n_keep.max())}"
            raise GeosparseError(f"Every head keeps from 1 to {MAX_COUNT} tokens, found budgets of {bounds}.")
        check_whole("reference_length", self.reference_length, 1)
        if self.growth is not None:
            sound = tuple(self.growth.shape) == shape and self.growth.dtype == torch.float64
            sound = sound and bool(((self.growth >= 0) & (self.growth <= MAX_GROWTH)).all())
            require(sound, f"growth holds one exponent from 0 to {MAX_GROWTH:g} per head.")
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse a tail without the mass that it needs, and heads that cannot share."""
        for layer in range(self.model.layers):
            selectors = per_head(self.selectors_of(layer), self.model.heads)
            tails = per_head(self.tails_of(layer), self.model.heads)
            for head, (selector, tail) in enumerate(zip(selectors, tails, strict=True)):
                if not fits(selector, tail):
                    raise GeosparseError(
                        f"Layer {layer}, head {head}: the selector {selector} scores nothing, so that the mass of the "
                        f"rest is not known; it goes with the tail 'renormalize', found {tail!r}."
                    )
            if self.share_kv and not all(SELECTORS[name].shareable for name in set(selectors)):
                raise GeosparseError(f"share_kv goes with the selectors {shareable()} only.")
        if self.share_kv:
            groups = self.n_keep.view(self.model.layers, self.model.kv_heads, -1)
            indices = self.selector_places.view(groups.shape)
            same = (groups == groups[..., :1]).all() and (indices == indices[..., :1]).all()
            require(bool(same), "share_kv needs equal budgets and selectors within each KV group.")

    @property
    def selector_places(self) -> torch.Tensor:
        """The selector of every head, `[layers, Hq]` int64 places in `ops.SELECTORS`."""
        if self.head_selectors is not None:
            return self.head_selectors
        return torch.full_like(self.n_keep, SELECTORS.names.index(self.selector))

    @property
    def longest_window(self) -> int | None:
        """Tokens of the longest windows of the profile behind the plan; None for a plan without one.

        What heads want at a longer context than that was not measured: budgets there are extrapolated.
        """
        lengths = self.calibration.get("lengths")
        return max(lengths) if isinstance(lengths, list) and lengths and all(map(is_count, lengths)) else None

    def selector_counts(self) -> dict[str, int]:
        """How many heads each selector serves, those that serve none left out."""
        indices = self.selector_places.flatten().tolist()
        return {name: count for index, name in enumerate(SELECTORS.names) if (count := indices.count(index))}

    @classmethod
    def uniform(
        cls,
        model: Any,
        n_keep: int,
        tail: Tail = "renormalize",
        reference_length: int | None = None,
        selector: Selector = EXACT,
    ) -> Plan:
        """The same budget for every head: the baseline of every table.

        Args:
            model: The model it is for.
            n_keep: Tokens kept per head.
            tail: What stands for the rest.
            reference_length: Recorded only; by default the longest context of the model.
            selector: How the tokens are found.
        """
        if not is_count(as_whole(n_keep)):
            raise GeosparseError(f"n_keep is a whole number of tokens >= 1, found {n_keep}.")
        n_keep = int(n_keep)
        identity = identify(model)
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if reference_length is None:
            reference_length = longest if is_count(longest) else n_keep
        reference_length = check_whole("reference_length", reference_length, 1)
        budgets = torch.full((identity.layers, identity.heads), n_keep, dtype=torch.int64, device="cpu")
        return cls(
            budgets,
            tail,
            reference_length,
            "uniform",
            {"mean_keep": float(n_keep)},
            identity,
            selector=selector,
        )

    def tails_of(self, layer: int) -> Tails:
        """The tail of a layer's heads, as the attention paths take it."""
        if self.tail_shares is not None:
            return [TailShares(*shares) for shares in self.tail_shares[layer].tolist()]
        if self.head_tails is None:
            return self.tail
        return [TAILS[index] for index in self.head_tails[layer].tolist()]

    def selectors_of(self, layer: int) -> Selectors:
        """The selector of a layer's heads, as the attention paths take it."""
        if self.head_selectors is None:
            return self.selector
        return [SELECTORS.names[index] for index in self.head_selectors[layer].tolist()]

    @property
    def budgets(self) -> Budgets:
        """N of every head at any number of visible tokens."""
        return Budgets(self.n_keep, self.growth, self.reference_length)

    def at(self, length: int) -> torch.Tensor:
        """Tokens kept `[layers, Hq]` int64 by a query that sees `length` tokens."""
        return self.budgets.at(torch.tensor(length, dtype=torch.int64, device="cpu")).clamp_max(length)

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
        schema = SCHEMA if self.tail_shares is None else FITTED_SCHEMA
        data |= {"schema": schema, "n_keep": self.n_keep.tolist(), "model": self.model.to_json()}
        tables = (("head_tails", self.head_tails, TAILS), ("head_selectors", self.head_selectors, SELECTORS.names))
        for key, indices, names in tables:
            data[key] = None if indices is None else [[names[index] for index in row] for row in indices.tolist()]
        data["seen"] = None if self.seen is None else self.seen.to_json()
        for key in ("growth", "tail_shares"):
            numbers = getattr(self, key)
            data[key] = None if numbers is None else numbers.tolist()
        defaults: dict[str, Any] = dict.fromkeys((*_PER_HEAD, "seen"))
        defaults |= {"share_kv": False, "selector": EXACT, "verified": {}, "kinds": {}}
        return {key: value for key, value in data.items() if key not in defaults or value != defaults[key]}

    def digest(self) -> str:
        """SHA-256 of what the model sees of the plan (`DECISIVE`): plans that differ in provenance only share it."""
        data = self.to_json()
        seen = {"plan": {key: data[key] for key in DECISIVE if key in data}}
        return hashlib.sha256(dump_json(seen).encode()).hexdigest()

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
        data = read_json(path, "plan", MAX_FILE)
        try:
            return cls.from_json(data)
        except NotInstalledError as error:
            raise GeosparseError(f"{path} cannot be used here: {error}") from error
        except GeosparseError as error:
            raise damaged(path, "plan", str(error)) from error

    @classmethod
    def from_json(cls, data: Any) -> Plan:
        """The plan in a JSON object; raises GeosparseError where anything is missing, unknown or of the wrong type."""
        schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
        if not isinstance(data, dict) or schema not in (SCHEMA, FITTED_SCHEMA):
            raise GeosparseError(f"expected schema {SCHEMA} or {FITTED_SCHEMA}, found {schema!r}.")
        known = {item.name for item in fields(cls)}
        for key in data.keys() - known - {"schema"}:
            raise GeosparseError(f"the key {key!r} is not known.")
        for key in sorted(known - data.keys() - OPTIONAL):
            raise GeosparseError(f"the key {key!r} is missing.")
        identity = parse_identity(data["model"])
        for key, kind in (("calibration", dict), ("predicted", dict), ("provenance", dict), ("budget", dict)):
            require(isinstance(data[key], kind), f"{key} is not an object.")
        for key in ("predicted", "budget"):
            require(all(map(is_number, data[key].values())), f"{key} holds something that is not a number.")
        kinds = data.get("kinds", {})
        require(isinstance(kinds, dict) and all(map(is_number, kinds.values())), "kinds holds no numbers by name.")
        verified = data.get("verified", {})
        require(isinstance(verified, dict), "verified is not an object.")
        sound = not verified or all(is_number(verified.get(key)) for key in VERIFIED)
        require(sound, f"verified lacks one of the numbers {', '.join(VERIFIED)}.")
        require(isinstance(data["policy"], str) and isinstance(data["tail"], str), "policy and tail are words.")
        require(is_count(data["reference_length"]), "reference_length is not a whole number >= 1.")
        require(isinstance(data.get("selector", EXACT), str), "selector is not a word.")
        require(isinstance(data.get("share_kv", False), bool), "share_kv is neither true nor false.")
        values = {key: data[key] for key in known & data.keys() - {"model", "n_keep"}}
        for name in {data.get("selector", EXACT), *_words_of(data.get("head_selectors"))}:
            check_installed(name)
        for key, names in (("head_tails", TAILS), ("head_selectors", SELECTORS.names)):
            if key in data:
                values[key] = _parse_words(data[key], identity, names, key)
        if "seen" in data:
            values["seen"] = Seen.from_json(data["seen"], identity.layers, identity.heads)
        if "growth" in data:
            values["growth"] = _parse_growth(data["growth"], identity)
        if "tail_shares" in data:
            values["tail_shares"] = _parse_shares(data["tail_shares"], identity)
        return cls(n_keep=_parse_budgets(data["n_keep"], identity), model=identity, **values)


def _are_indices(table: torch.Tensor | None, shape: tuple[int, int], count: int) -> bool:
    """Whether `table` is None or holds an index below `count` for each head."""
    if table is None:
        return True
    known = tuple(table.shape) == shape and table.dtype == torch.int64
    return known and int(table.min()) >= 0 and int(table.max()) < count


def _is_table(rows: Any, identity: ModelIdentity) -> bool:
    shaped = isinstance(rows, list) and len(rows) == identity.layers
    return shaped and all(isinstance(row, list) and len(row) == identity.heads for row in rows)


def _words_of(rows: Any) -> set[str]:
    """The distinct words of a table; whether it is one is checked elsewhere."""
    lists = [row for row in rows if isinstance(row, list)] if isinstance(rows, list) else []
    return {word for row in lists for word in row if isinstance(word, str)}


def _parse_words(rows: Any, identity: ModelIdentity, names: Sequence[str], key: str) -> torch.Tensor:
    require(_is_table(rows, identity), f"{key} is misshapen.")
    require(all(name in names for row in rows for name in row), f"{key} holds an unknown word.")
    return torch.tensor([[names.index(name) for name in row] for row in rows], dtype=torch.int64, device="cpu")


def _parse_growth(rows: Any, identity: ModelIdentity) -> torch.Tensor:
    require(_is_table(rows, identity), "growth is misshapen.")
    numbers = all(isinstance(power, int | float) and not isinstance(power, bool) for row in rows for power in row)
    require(numbers, "growth holds something that is not a number.")
    sound = all(0 <= power <= MAX_GROWTH for row in rows for power in row)
    require(sound, f"growth holds one exponent from 0 to {MAX_GROWTH:g} per head.")
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _parse_shares(rows: Any, identity: ModelIdentity) -> torch.Tensor:
    require(_is_table(rows, identity), "tail_shares is misshapen.")
    heads = [shares for row in rows for shares in row]
    fours = all(isinstance(shares, list) and len(shares) == len(TailShares._fields) for shares in heads)
    require(fours, "tail_shares is misshapen.")
    require(all(map(is_number, (share for shares in heads for share in shares))), "tail_shares holds no numbers.")
    return torch.tensor(rows, dtype=torch.float64, device="cpu")


def _parse_budgets(rows: Any, identity: ModelIdentity) -> torch.Tensor:
    require(_is_table(rows, identity), "n_keep is misshapen.")
    require(all(is_count(n) for row in rows for n in row), "n_keep holds something that is not a whole number >= 1.")
    return torch.tensor(rows, dtype=torch.int64, device="cpu")

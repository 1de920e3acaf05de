"""What the file of a profile holds: names, shapes and types of its arrays, and its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..geometry.moments import Moments, shape_of
from ..geometry.regimes import SIGNATURES
from ..geometry.separation import DISTANCES
from ..hf.identity import ModelIdentity, parse_identity
from ..ops import TAILS
from ..ops.selectors import check_installed
from ..utils.files import is_count, parse_json, require
from .interplay import Interplay
from .tail_moments import PAIRS, TAIL_ARRAYS

SCHEMA = "geosparse.profile/4"
# What goes before the names of moments in the file; a profile made before there were any has none.
MOMENTS = "moments."
INTERPLAY = "interplay."
BUILT_IN = "builtin:"
"""What goes before the name of a built-in kind of text (`text.kinds`)."""
OWN_KIND = "text"
MAX_FILE = 8 << 30
# The fields that are tensors in the file; the others are its metadata.
TENSORS = {"arrays", "moments", "interplay", "tail_moments"}
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


def shapes(model: ModelIdentity, lists: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
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
    pairs = (*arrays["mass"], len(PAIRS))
    return arrays | moments | prices | dict.fromkeys(TAIL_ARRAYS, pairs)


def parse_metadata(header: dict[str, str] | None, fields_of_profile: set[str]) -> dict[str, Any]:
    """The fields of a Profile that are no tensors, from the header of its file.

    Raises:
        GeosparseError: Something is missing, unknown or of the wrong type.
    """
    data = parse_json((header or {}).get("geosparse", "null"))
    require(isinstance(data, dict) and data.get("schema") == SCHEMA, f"its schema is not {SCHEMA}.")
    require(data.get("dimensions") == DIMENSIONS, "its tails, rankings or distances are not known.")
    known = fields_of_profile - TENSORS
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

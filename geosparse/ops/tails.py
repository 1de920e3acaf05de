"""Tails: what stands in the output for the tokens that are not kept. One line each; kernels take their numbers.

With M the kept mass, w the weights of the N kept tokens and v_bar the mean of the visible values, the output is

    sum over kept tokens of (w + kept_fraction (1 - M) / N) v  +  mean_fraction (1 - M) v_bar,

or, renormalised, the kept tokens' part divided by M.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import GeosparseError, did_you_mean


class TailRule(NamedTuple):
    """Where a tail puts the missing mass 1 - M.

    Attributes:
        meaning: In words.
        mean_fraction: The part that goes to the mean of the visible values (beta).
        kept_fraction: The part that goes to the kept tokens, to each the same, whatever its weight.
        renormalize: The kept weights are scaled to the sum 1 instead.
    """

    meaning: str
    mean_fraction: float = 0.0
    kept_fraction: float = 0.0
    renormalize: bool = False

    @property
    def gives_all(self) -> bool:
        """Whether the two parts are all of the missing mass."""
        return self.mean_fraction + self.kept_fraction == 1.0


def _blend(mean_fraction: float) -> TailRule:
    percent = round(100 * mean_fraction)
    meaning = f"{percent} % to the mean of all visible values, the rest to the kept tokens in equal parts"
    return TailRule(meaning, mean_fraction, 1.0 - mean_fraction)


TAIL_RULES: dict[str, TailRule] = {
    "drop": TailRule("nowhere: the output is smaller"),
    "renormalize": TailRule("to the kept tokens in proportion to their weights: a softmax over them", renormalize=True),
    "centroid": TailRule("to the mean of all visible values", 1.0, 0.0),
    "even": TailRule("to the kept tokens in equal parts", 0.0, 1.0),
    "blend25": _blend(0.25),
    "blend50": _blend(0.5),
    "blend75": _blend(0.75),
}
"""Name -> where the missing mass goes."""
TAILS = tuple(TAIL_RULES)
"""The names; tails in tables of numbers are places in it."""
MEAN_FRACTION = {name: rule.mean_fraction for name, rule in TAIL_RULES.items() if rule.gives_all}
"""Of the tails that give all missing mass away the part of it that goes to the mean of the visible values."""

TAIL_FAMILIES: dict[str, tuple[str, ...]] = {"best": ("drop", "renormalize", "centroid"), "blend": TAILS}
"""Names for a tail of each head's own, and those that it is one of."""
FAMILY_MEANING = {
    "best": "per head, the cheapest of drop, renormalize and centroid by the profile",
    "blend": "per head, the cheapest of all tails by the profile",
}
DEFAULT_TAIL = "blend"


def expand_tail(tail: str) -> tuple[str, ...]:
    """The tails that a name in TAILS or TAIL_FAMILIES stands for."""
    return TAIL_FAMILIES.get(tail, (tail,))


def check_tail(tail: str) -> None:
    """Raise GeosparseError unless `tail` is a name in TAILS or TAIL_FAMILIES."""
    names = (*TAILS, *TAIL_FAMILIES)
    if tail not in names:
        raise GeosparseError(f"Unknown tail {tail!r}: {did_you_mean(tail, names)}")

"""Tails: what stands in the output for the tokens that are not kept. One line each; kernels take their numbers.

With M the mass of the kept tokens and of a learned sink, m = 1 - M, w the weights of the N kept tokens, r those of the
others, and pages of PAGE visible tokens each, counted from the first, the output is a sum of values with the weights

    kept token:   w (1 + weighted m / M)  +  kept m / N
    every token:  mean m / visible  +  pages (mean of r in its page; r itself behind the last complete page)

A tail is those four shares. A `renormalize` tail, `weighted` alone and 1, needs not know the weights of the others.
"""

from __future__ import annotations

from typing import NamedTuple

from ..errors import GeosparseError, did_you_mean


class TailShares(NamedTuple):
    """What becomes of the missing mass: numbers of any sign, whose sum need not be 1.

    Attributes:
        mean: Its share that goes to the mean of the visible values.
        kept: To the kept tokens, to each the same, whatever its weight.
        weighted: To the kept tokens in proportion to their weights.
        pages: To the mean values of the pages that it is missing from, to each what it misses.
    """

    mean: float = 0.0
    kept: float = 0.0
    weighted: float = 0.0
    pages: float = 0.0

    @property
    def renormalize(self) -> bool:
        """Whether the result is a softmax over the kept tokens."""
        return self == (0.0, 0.0, 1.0, 0.0)

    @property
    def gives_all(self) -> bool:
        """Whether all of the missing mass goes to the mean and to the kept tokens alike."""
        return self.mean + self.kept == 1.0


class TailRule(NamedTuple):
    """A tail by name: what it does, in words and in numbers."""

    meaning: str
    shares: TailShares = TailShares()


def _blend(mean: float) -> TailRule:
    meaning = f"{round(100 * mean)} % to the mean of all visible values, the rest to the kept tokens in equal parts"
    return TailRule(meaning, TailShares(mean, 1.0 - mean))


TAIL_RULES: dict[str, TailRule] = {
    "drop": TailRule("nowhere: the output is smaller"),
    "renormalize": TailRule(
        "to the kept tokens in proportion to their weights: a softmax over them", TailShares(weighted=1.0)
    ),
    "centroid": TailRule("to the mean of all visible values", TailShares(mean=1.0)),
    "even": TailRule("to the kept tokens in equal parts", TailShares(kept=1.0)),
    "blend25": _blend(0.25),
    "blend50": _blend(0.5),
    "blend75": _blend(0.75),
}
"""Name -> where the missing mass goes."""
TAILS = tuple(TAIL_RULES)
"""The names; tails in tables of numbers are places in it."""
MEAN_FRACTION = {name: rule.shares.mean for name, rule in TAIL_RULES.items() if rule.shares.gives_all}
"""Of the tails that give all missing mass away the part of it that goes to the mean of the visible values."""

TAIL_FAMILIES: dict[str, tuple[str, ...]] = {"best": ("drop", "renormalize", "centroid"), "blend": TAILS}
"""Names for a tail of each head's own, and those that it is one of."""
FITTED = "fitted"
"""The tail of plans whose heads have shares of their own, fitted to the profile."""
FAMILY_MEANING = {
    "best": "per head, the cheapest of drop, renormalize and centroid by the profile",
    "blend": "per head, the cheapest of all tails by the profile",
    FITTED: "per head, shares of its own by least squares on the profile: to the mean of all visible values, to the "
    "kept tokens alike and by their weights, and to the mean values of the pages that the mass is missing from",
}
DEFAULT_TAIL = FITTED
FORMER_TAIL = "blend"
"""The default where nothing is fitted: one kind of text, old profiles, selectors without the weight of the rest."""


def shares_of(tail: str | TailShares) -> TailShares:
    """A tail in numbers."""
    return TAIL_RULES[tail].shares if isinstance(tail, str) else tail


def expand_tail(tail: str) -> tuple[str, ...]:
    """The tails that a name in TAILS or TAIL_FAMILIES stands for."""
    return TAIL_FAMILIES.get(tail, (tail,))


def check_tail(tail: str) -> None:
    """Raise GeosparseError unless `tail` is a name in TAILS or TAIL_FAMILIES, or FITTED."""
    names = (*TAILS, *FAMILY_MEANING)
    if tail not in names:
        raise GeosparseError(f"Unknown tail {tail!r}: {did_you_mean(tail, names)}")

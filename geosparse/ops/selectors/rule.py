"""What a selector is: a choice of N tokens, and all that other modules have to know of it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...errors import GeosparseError

if TYPE_CHECKING:
    from .view import Choice, SelectorView

Choose = Callable[["SelectorView"], "Choice"]
Part = Literal["key", "codes", "bounds"]
"""What there is of every token to find it by: its key, the key's codes, its part of its page's bounds."""


@dataclass(frozen=True)
class SelectorRule:
    """A function from what a selector may look at to a choice, and its facts.

    Attributes:
        name: By which users ask for it.
        choose: The tokens that are kept, min(N, visible) for every query, in plain PyTorch: the definition that kernels
            are held against.
        keeps: Which N tokens those are, in a few words.
        reads: What a decode step reads to find them, in a few words.
        reason: Why, one paragraph.
        scans: What a decode step reads of every visible token; with "codes" or "bounds" the selector has a KeyIndex.
        oversample: Tokens in the pages that are looked into, per kept token; None for a selector without candidates.
        coded: It reads the codes of keys: of all, or of its candidates.
        ranks: Where it keeps the N of highest score, whatever N is: the scores of its `SelectorView` that it goes by.
            Only such selectors can be shared by the heads of a KV group.
        knows_rest: Whether it says what the other tokens weigh; else it goes with the tail "renormalize" only.
        kernel: Its number in the C++ decode kernel (`enum Selector` in kernels.cpp); the Triton stages know those that
            have one. None: plain PyTorch serves it on every device.
        prefill_kernel: Whether the C++ kernel for several queries knows it.
    """

    name: str
    choose: Choose
    keeps: str
    reads: str = "every key"
    reason: str = ""
    scans: tuple[Part, ...] = ("key",)
    oversample: int | None = None
    coded: bool = False
    ranks: Literal["scores", "coarse"] | None = None
    knows_rest: bool = True
    kernel: int | None = None
    prefill_kernel: bool = False

    @property
    def indexed(self) -> bool:
        """Whether it reads a KeyIndex."""
        return "bounds" in self.scans or "codes" in self.scans

    @property
    def reads_every_key(self) -> bool:
        """Whether it looks at all keys, so that offloading them saves nothing."""
        return "key" in self.scans

    @property
    def shareable(self) -> bool:
        """Whether the heads of one KV group can select together."""
        return self.ranks is not None


def selector(keeps: str, **facts: Any) -> Callable[[Choose], SelectorRule]:
    """Decorator that makes a SelectorRule of a function, named after it and explained by its docstring.

    Args:
        keeps: Which N tokens are kept, in a few words.
        facts: Other attributes of a SelectorRule that are not their defaults.
    """

    def decorate(function: Any) -> SelectorRule:
        named = {"name": function.__name__, "reason": inspect.getdoc(function) or ""} | facts
        return SelectorRule(choose=function, keeps=keeps, **named)

    return decorate


def adopt(name: str, content: object) -> SelectorRule:
    """The selector that a module or an entry point holds: a SelectorRule, or a plain function `(view) -> Choice`."""
    if isinstance(content, SelectorRule):
        if content.name != name:
            raise GeosparseError(f"The selector {name!r} calls itself {content.name!r}: give it one name.")
        return content
    if not callable(content):
        raise GeosparseError(
            f"The selector {name!r} is a {type(content).__name__}: an entry point in the group 'geosparse.selectors' "
            "names a function (view) that returns a Choice of tokens."
        )
    return SelectorRule(name, content, "defined by another package", reason=inspect.getdoc(content) or "")

"""Prose that no one wrote: sentences from a seed, for haystacks of any length without a download."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

ADJECTIVES = (
    "old",
    "quiet",
    "narrow",
    "bright",
    "wooden",
    "northern",
    "empty",
    "patient",
    "hidden",
    "winding",
    "pale",
    "steep",
)
THINGS = (
    "harbour",
    "garden",
    "bridge",
    "library",
    "mill",
    "orchard",
    "station",
    "market",
    "tower",
    "meadow",
    "workshop",
    "lake",
)
PEOPLE = ("gardener", "teacher", "sailor", "baker", "traveller", "clerk", "painter", "miller", "doctor", "shepherd")
DEEDS = (
    "walked past",
    "looked after",
    "wrote about",
    "remembered",
    "drew",
    "returned to",
    "asked about",
    "slept near",
)
TIMES = ("in the morning", "after the rain", "before winter", "on market days", "late in the evening", "every spring")
PLACES = (
    "Aldermoor", "Brackwater", "Calloway", "Dunmere", "Eastvale", "Fernhollow", "Greyford", "Hollinside", "Inverlace",
    "Juniper Hill", "Kestrel Bay", "Larkspur", "Marrowby", "Netherfield", "Oakhampton", "Pinewick", "Quarrydale",
    "Rookhaven", "Silverbeck", "Thornbury", "Underwood", "Vennmoor", "Westerly", "Yarrowgate",
)  # fmt: skip


def sentences(source: random.Random) -> Iterator[str]:
    """Sentences without end, none of which names a place or a number."""
    while True:
        first, second = source.choice(ADJECTIVES), source.choice(ADJECTIVES)
        yield (
            f"The {first} {source.choice(PEOPLE)} {source.choice(DEEDS)} the {second} {source.choice(THINGS)} "
            f"{source.choice(TIMES)}."
        )


def lines_that_fit(lines: Iterator[str], room: int, tokenizer: Any, join: str) -> list[str]:
    """As many lines as fit into `room` tokens, joined by `join`."""
    taken: list[str] = []
    used = 0
    for line in lines:
        used += len(tokenizer(join + line, add_special_tokens=False)["input_ids"])
        if used > room:
            return taken
        taken.append(line)
    return taken
